from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import GenerationConfig

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.evaluation.answers import compare_answers, write_answers
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work
from lora_dpo.model.answering import Answer, seed_of
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.schema import ModelSection
from tests.evaluation.models import adapted
from tests.tiny import ARCHITECTURES

PROMPTS = [user(text) for text in ("Hi", "Why is the sky blue on a clear day, and red in the evening?", "Do bats see?")]


@pytest.fixture
def loaded(tiny_models):
    """Returns a function that loads a model of which the prompt decides the answer."""

    def load(architecture: str) -> tuple[torch.nn.Module, TurnEncoder]:
        section = ModelSection(name=str(tiny_models(architecture)))
        model = load_model(section).eval()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
        return model, TurnEncoder(load_tokenizer(section))

    return load


@torch.no_grad()
def written_one_by_one(
    model: torch.nn.Module, ids: list[int], count: int, stops: set[int], seed: int | None = None
) -> list[int]:
    """Writes an answer without cache, batch or padding; with a seed, by the Gumbel-max trick."""
    written: list[int] = []
    noise = None if seed is None else torch.Generator().manual_seed(seed_of(seed, ids))
    while len(written) < count:
        logits = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1]
        if noise is not None:
            logits = logits - (-torch.rand(len(logits), generator=noise, dtype=torch.float64).log()).log()
        written.append(logits.argmax().item())
        if written[-1] in stops:
            break
    return written


def ids_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer["ids"] for answer in answers]


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_neither_batch_nor_order_changes_an_answer(architecture: str, seed: int | None, loaded) -> None:
    model, encoder = loaded(architecture)
    prompts = [encoder.prompt_ids(prompt) for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) == 3
    stops = {encoder.end_of_turn_id, encoder.tokenizer.eos_token_id}
    expected = [written_one_by_one(model, prompt, 12, stops, seed) for prompt in prompts]
    for batch_size in (1, 2, 3):
        answers = write_answers(
            Work(), model, encoder, prompts, "", max_new_tokens=12, batch_size=batch_size, seed=seed
        )
        assert ids_of(answers) == expected
    backwards = write_answers(Work(), model, encoder, prompts[::-1], "", max_new_tokens=12, batch_size=2, seed=seed)
    assert ids_of(backwards) == expected[::-1]
    assert len(set(map(tuple, expected))) > 1


def always_say(model: torch.nn.Module, tokens: list[int]) -> None:
    """Makes the model answer with these tokens, one a forward pass, and then with the last one again and again."""
    left = iter(tokens)

    def hook(module, args, output):
        output.logits = torch.zeros(output.logits.shape[0], 1, model.config.vocab_size)
        output.logits[..., next(left, tokens[-1])] = 10.0
        return output

    model.register_forward_hook(hook)


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "gpt2"])
@torch.no_grad()
def test_answer_stops_at_the_end_of_turn(architecture: str, loaded) -> None:
    """Gemma's and Llama's end of turn is not the EOS that the tokenizer names."""
    model, encoder = loaded(architecture)
    prompt = encoder.prompt_ids(PROMPTS[0])
    word = encoder.tokenizer(" sky", add_special_tokens=False)["input_ids"]
    always_say(model, [*word, encoder.end_of_turn_id, *word])
    answers = write_answers(Work(), model, encoder, [prompt], "", max_new_tokens=20, batch_size=1)
    assert answers == [{"text": "sky", "ids": [*word, encoder.end_of_turn_id], "ended": True}]


@torch.no_grad()
def test_answer_is_not_longer_than_asked(loaded) -> None:
    model, encoder = loaded("gpt2")
    prompt = encoder.prompt_ids(PROMPTS[0])
    (letter,) = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
    always_say(model, [letter])
    answers = write_answers(Work(), model, encoder, [prompt], "", max_new_tokens=5, batch_size=1)
    assert answers == [{"text": "aaaaa", "ids": [letter] * 5, "ended": False}]


@torch.no_grad()
def test_answer_ends_where_its_own_prompt_leaves_no_more_positions(loaded) -> None:
    model, encoder = loaded("gpt2")
    (letter,) = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
    always_say(model, [letter])
    prompts = [[letter] * 510, [letter] * 3]  # of 512 positions
    answers = write_answers(Work(), model, encoder, prompts, "", max_new_tokens=6, batch_size=2)
    assert [answer["text"] for answer in answers] == ["aa", "aaaaaa"]


def test_prompt_that_leaves_no_room(loaded) -> None:
    model, encoder = loaded("gpt2")
    with pytest.raises(UserError, match="A prompt of 512 tokens leaves no room for an answer: .* has 512 positions"):
        write_answers(Work(), model, encoder, [[20] * 512], "", max_new_tokens=4, batch_size=1)


@pytest.mark.parametrize("seed", [None, 5])
@torch.no_grad()
def test_the_models_own_generation_settings_do_not_apply(seed: int | None, loaded) -> None:
    model, encoder = loaded("llama")
    prompts = [encoder.prompt_ids(prompt) for prompt in PROMPTS]

    def answers() -> list[list[int]]:
        written = write_answers(Work(), model, encoder, prompts, "", max_new_tokens=12, batch_size=3, seed=seed)
        return ids_of(written)

    plain = answers()
    own = GenerationConfig(repetition_penalty=5.0, suppress_tokens=[plain[0][0]], do_sample=True, top_k=2)
    model.generation_config = own
    assert answers() == plain
    assert model.generation_config is own


def test_before_and_after(loaded) -> None:
    model, encoder = loaded("llama")
    tuned = adapted(model).eval()
    prompts = [encoder.prompt_ids(prompt) for prompt in PROMPTS]
    stops = {encoder.end_of_turn_id, encoder.tokenizer.eos_token_id}
    for seed in (None, 2):
        answers = compare_answers(Work(), Policies(tuned), encoder, prompts, max_new_tokens=6, batch_size=2, seed=seed)
        assert ids_of(answers["after"]) == [written_one_by_one(tuned, ids, 6, stops, seed) for ids in prompts]
        with tuned.disable_adapter():
            expected = [written_one_by_one(tuned, ids, 6, stops, seed) for ids in prompts]
        assert ids_of(answers["before"]) == expected != ids_of(answers["after"])


def test_kept_answers_are_those_of_the_same_question_seed_and_length(loaded, tmp_path) -> None:
    model, encoder = loaded("llama")
    prompts = [encoder.prompt_ids(prompt) for prompt in PROMPTS]
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))

    def answers(asked: list[list[int]], **changed: int) -> list[Answer]:
        del passes[:]
        options = {"max_new_tokens": 4, "batch_size": 3, "seed": 0, **changed}
        return write_answers(Work(tmp_path), model, encoder, asked, "answers", **options)

    with torch.no_grad():
        first = answers(prompts)
        assert passes
        assert answers(prompts[::-1]) == first[::-1]
        assert not passes
        for changed in ({"seed": 1}, {"max_new_tokens": 5}):
            assert answers(prompts, **changed) != first
            assert passes
