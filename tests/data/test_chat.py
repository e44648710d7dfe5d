from __future__ import annotations

from dataclasses import replace

import pytest

from lora_dpo.data.chat import TokenisedPair, TurnEncoder, check_turns
from lora_dpo.data.pair import Message, Pair, user
from lora_dpo.errors import UserError
from tests.tiny import ARCHITECTURES, tiny_tokenizer

CHAT = ("llama", "tinyllama", "gemma2", "gemma3", "qwen2", "qwen3")
PLAIN = ("gpt2", "gptj", "mistral")
END_OF_TURN = {
    "gpt2": "<|endoftext|>",
    "gptj": "<|endoftext|>",
    "llama": "<|eot_id|>",
    "tinyllama": "</s>",
    "mistral": "</s>",
    "gemma2": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "qwen2": "<|im_end|>",
    "qwen3": "<|im_end|>",
}
# Tokenizers of these families add a BOS themselves; GPT's and Qwen's do not, and their models never saw one.
WITH_BOS = ("llama", "tinyllama", "mistral", "gemma2", "gemma3")
SYSTEM: Message = {"role": "system", "content": "Answer briefly."}
ONE_TURN = user("Why is the sky blue?")
THREE_TURNS: tuple[Message, ...] = (
    {"role": "user", "content": "Do bats see?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "How well?"},
)


def pair_on(prompt: tuple[Message, ...]) -> Pair:
    return Pair(prompt, "Air scatters blue light.", "It mirrors the sea, that is all.", "g", origin="data.csv, line 7")


def encoded(architecture: str, prompt: tuple[Message, ...] = ONE_TURN, **options: str) -> tuple:
    encoder = TurnEncoder(tiny_tokenizer(architecture), **options)
    (pair,) = encoder.encode([pair_on(prompt)])
    return encoder, pair


@pytest.mark.parametrize("prompt", [ONE_TURN, THREE_TURNS, (SYSTEM, *ONE_TURN)], ids=["one", "three", "system"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_bos_where_the_model_knows_one(architecture: str, prompt: tuple[Message, ...]) -> None:
    encoder, pair = encoded(architecture, prompt)
    bos = encoder.tokenizer.bos_token_id
    for completion in (pair.chosen_ids, pair.rejected_ids):
        sequence = pair.prompt_ids + completion
        if architecture in WITH_BOS:
            assert sequence[0] == bos
            assert sequence.count(bos) == 1
        else:  # GPT's BOS is its end of text, which stands at the end only
            assert sequence[0] != bos
            assert bos not in sequence[:-1]


@pytest.mark.parametrize("architecture", WITH_BOS)
def test_plain_form_gets_the_bos_that_the_tokenizer_adds(architecture: str) -> None:
    encoder, pair = encoded(architecture, template="plain")
    assert (pair.prompt_ids + pair.chosen_ids).count(encoder.tokenizer.bos_token_id) == 1
    assert pair.prompt_ids[0] == encoder.tokenizer.bos_token_id


def test_template_and_tokenizer_that_both_add_a_bos() -> None:
    tokenizer = tiny_tokenizer("gemma2")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template  # a template that writes it twice
    text = tokenizer.apply_chat_template(list(ONE_TURN), tokenize=False)
    assert tokenizer(text)["input_ids"][:3] == [tokenizer.bos_token_id] * 3  # what a careless pipeline trains on
    (pair,) = TurnEncoder(tokenizer).encode([pair_on(ONE_TURN)])
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_qwen_has_no_bos_at_all() -> None:
    encoder, pair = encoded("qwen3")
    assert encoder.tokenizer.bos_token_id is None
    assert encoder.tokenizer.decode(pair.prompt_ids[:1]) == "<|im_start|>"


@pytest.mark.parametrize("prompt", [ONE_TURN, THREE_TURNS], ids=["one", "three"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_completions_end_on_the_end_of_turn(architecture: str, prompt: tuple[Message, ...]) -> None:
    encoder, pair = encoded(architecture, prompt)
    end = encoder.tokenizer.convert_tokens_to_ids(END_OF_TURN[architecture])
    assert encoder.end_of_turn_id == end
    for completion in (pair.chosen_ids, pair.rejected_ids):
        assert completion[-1] == end
        assert completion.count(end) == 1


@pytest.mark.parametrize("architecture", ["tinyllama", "gemma2", "qwen3"])
def test_newline_after_the_end_of_turn_is_cut(architecture: str) -> None:
    encoder, pair = encoded(architecture)
    whole = encoder.render(ONE_TURN, pair.pair.chosen)
    assert whole.endswith(f"{END_OF_TURN[architecture]}\n")
    assert encoder.tokenizer.decode(pair.chosen_ids) == f"{pair.pair.chosen}{END_OF_TURN[architecture]}"


def test_end_of_turn_is_added_where_the_template_writes_none() -> None:
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    encoder = TurnEncoder(tokenizer)
    (pair,) = encoder.encode([pair_on(ONE_TURN)])
    assert encoder.end_of_turn_id == tokenizer.eos_token_id
    assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("prompt", [ONE_TURN, THREE_TURNS], ids=["one", "three"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompt_is_what_the_model_sees_when_it_generates(architecture: str, prompt: tuple[Message, ...]) -> None:
    encoder, pair = encoded(architecture, prompt)
    assert pair.prompt_ids == encoder.prompt_ids(prompt)
    if architecture in CHAT:
        text = encoder.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        own = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = [encoder.tokenizer.bos_token_id] if architecture == "tinyllama" else []  # its template writes none
        assert pair.prompt_ids == bos + own


@pytest.mark.parametrize("prompt", [ONE_TURN, THREE_TURNS], ids=["one", "three"])
@pytest.mark.parametrize("architecture", CHAT)
def test_whole_conversation_is_the_template_s_own_up_to_the_end_of_turn(
    architecture: str, prompt: tuple[Message, ...]
) -> None:
    encoder, pair = encoded(architecture, prompt)
    for answer, completion in ((pair.pair.chosen, pair.chosen_ids), (pair.pair.rejected, pair.rejected_ids)):
        turns = [*prompt, {"role": "assistant", "content": answer}]
        own = encoder.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        last = len(own) - 1 - own[::-1].index(encoder.end_of_turn_id)
        bos = [encoder.tokenizer.bos_token_id] if architecture == "tinyllama" else []
        assert pair.prompt_ids + completion == bos + own[: last + 1]


def test_tokens_that_merge_across_the_border_leave_the_prompt_whole() -> None:
    """The prompt's last character and the answer's first make one token of the whole text."""
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ '<|eot_id|>' }}{% else %}{{ ' t' }}{% endif %}{% endfor %}"
    )
    encoder = TurnEncoder(tokenizer)
    pair = Pair(user("Say"), "he sea", "he sky", "g")
    (ids,) = encoder.encode([pair])
    whole = tokenizer(encoder.render(pair.prompt, pair.chosen), add_special_tokens=False)["input_ids"]
    assert whole[: len(ids.prompt_ids)] != ids.prompt_ids, "the example does not merge, so it tests nothing"
    assert ids.prompt_ids == encoder.prompt_ids(pair.prompt)
    assert tokenizer.decode(ids.prompt_ids + ids.chosen_ids) == "<|begin_of_text|>Say the sea<|eot_id|>"


@pytest.mark.parametrize("architecture", ["llama", "tinyllama", "qwen3"])
def test_system_turn_is_kept_where_the_template_takes_it(architecture: str) -> None:
    encoder, pair = encoded(architecture, (SYSTEM, *ONE_TURN))
    text = encoder.tokenizer.decode(pair.prompt_ids)
    assert not encoder.folds_system
    assert text.index("system") < text.index("Answer briefly.") < text.index("user") < text.index("Why is the sky")
    assert "You are helpful." not in text  # ChatML's default gives way


def test_system_turn_is_folded_where_the_template_refuses_it() -> None:
    encoder, pair = encoded("gemma2", (SYSTEM, *THREE_TURNS))
    assert encoder.folds_system
    assert encoder.tokenizer.decode(pair.prompt_ids) == (
        "<bos><start_of_turn>user\nAnswer briefly.\n\nDo bats see?<end_of_turn>\n"
        "<start_of_turn>model\nYes.<end_of_turn>\n"
        "<start_of_turn>user\nHow well?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_system_turn_is_folded_where_the_template_drops_it_silently() -> None:
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] + '<|eot_id|>' }}{% endif %}{% endfor %}"
    )
    encoder = TurnEncoder(tokenizer)
    assert encoder.folds_system
    assert encoder.render((SYSTEM, *ONE_TURN)) == "Answer briefly.\n\nWhy is the sky blue?<|eot_id|>"


@pytest.mark.parametrize("architecture", PLAIN)
def test_plain_form_exactly(architecture: str) -> None:
    encoder, pair = encoded(architecture, (SYSTEM, *THREE_TURNS))
    assert encoder.style == "plain"
    prompt = "Answer briefly.\n\nUser: Do bats see?\n\nAssistant: Yes.\n\nUser: How well?\n\nAssistant:"
    bos, end = "<s>" if architecture in WITH_BOS else "", END_OF_TURN[architecture]
    assert encoder.tokenizer.decode(pair.prompt_ids) == bos + prompt
    assert encoder.tokenizer.decode(pair.chosen_ids) == f" Air scatters blue light.{end}"
    assert encoder.tokenizer.decode(pair.rejected_ids) == f" It mirrors the sea, that is all.{end}"


def test_plain_is_a_choice_for_a_model_with_a_template() -> None:
    encoder, pair = encoded("qwen3", template="plain")
    assert encoder.tokenizer.decode(pair.prompt_ids) == "User: Why is the sky blue?\n\nAssistant:"
    assert pair.chosen_ids[-1] == encoder.tokenizer.eos_token_id


def test_chat_template_asked_for_and_missing() -> None:
    with pytest.raises(UserError, match=r"has no chat template[\s\S]*model\.template=plain"):
        TurnEncoder(tiny_tokenizer("gpt2"), "chat")


def test_tokenizer_without_any_end() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        TurnEncoder(tokenizer)


def test_turns_that_the_template_refuses_are_named() -> None:
    encoder = TurnEncoder(tiny_tokenizer("gemma2"))
    with pytest.raises(UserError, match=r"turns user, user: .*must alternate"):
        encoder.prompt_ids((*ONE_TURN, *ONE_TURN))


def test_batches_keep_the_order() -> None:
    encoder = TurnEncoder(tiny_tokenizer("gpt2"))
    pairs = [Pair(user(f"Is {n} even?"), "Yes.", "No.", str(n)) for n in range(1003)]  # one more batch than full ones
    encoded_pairs = list(encoder.encode(pairs))
    assert [pair.pair for pair in encoded_pairs] == pairs
    assert encoded_pairs[1001].prompt_ids == encoder.prompt_ids(user("Is 1001 even?"))


def test_length_is_that_of_the_longer_sequence() -> None:
    assert TokenisedPair(pair_on(ONE_TURN), [1, 2, 3], [4, 5], [6]).length == 3 + 2
    assert TokenisedPair(pair_on(ONE_TURN), [1, 2, 3], [4], [5, 6, 7]).length == 3 + 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_turns_accepts_what_the_encoder_makes(architecture: str) -> None:
    for prompt in (ONE_TURN, THREE_TURNS, (SYSTEM, *ONE_TURN)):
        encoder, pair = encoded(architecture, prompt)
        check_turns(encoder, [pair])


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (lambda pair: {"prompt_ids": [pair.prompt_ids[0], *pair.prompt_ids]}, "begins with two BOS tokens"),
        (lambda pair: {"prompt_ids": pair.prompt_ids[1:]}, "does not begin with the BOS token"),
        (lambda pair: {"prompt_ids": pair.prompt_ids[:-1]}, "differ from those that the model sees"),
        (lambda pair: {"chosen_ids": []}, "a completion has no tokens"),
        (lambda pair: {"rejected_ids": []}, "a completion has no tokens"),
        (lambda pair: {"chosen_ids": pair.chosen_ids[:-1]}, "does not end on the end-of-turn token"),
        (lambda pair: {"rejected_ids": [*pair.rejected_ids, 9]}, "does not end on the end-of-turn token"),
    ],
    ids=["two BOS", "no BOS", "prompt cut", "no chosen", "no rejected", "chosen cut", "rejected longer"],
)
def test_check_turns_names_each_defect(defect, message: str) -> None:
    encoder, pair = encoded("gemma2")
    broken = replace(pair, **defect(pair))
    with pytest.raises(UserError, match=message) as caught:
        check_turns(encoder, [pair, broken])
    assert caught.value.where == "data.csv, line 7"
