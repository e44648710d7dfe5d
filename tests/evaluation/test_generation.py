from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import user
from lora_dpo.evaluation.generation import compare_answers, write_answers
from lora_dpo.evaluation.policies import Policies
from lora_dpo.model.base import load_model, load_tokenizer
from lora_dpo.recipe.schema import ModelSection
from tests.small import preferences
from tests.tiny import ARCHITECTURES

PROMPTS = [user(text) for text in ("Hi", "Why is the sky blue on a clear day, and red in the evening?", "Do bats see?")]


@pytest.fixture
def loaded(tiny_models):
    def load(architecture: str) -> tuple[torch.nn.Module, TurnEncoder]:
        section = ModelSection(name=str(tiny_models(architecture)))
        return load_model(section).eval(), TurnEncoder(load_tokenizer(section))

    return load


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], count: int, stops: set[int]) -> list[int]:
    """Writes an answer without cache, batch or padding."""
    written: list[int] = []
    while len(written) < count:
        token = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1].argmax().item()
        written.append(token)
        if token in stops:
            break
    return written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_left_padding_changes_no_answer(architecture: str, loaded) -> None:
    model, encoder = loaded(architecture)
    torch.manual_seed(3)
    for parameter in model.parameters():  # so large that the prompt decides the answer
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
    prompts = [encoder.prompt_ids(prompt) for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) == 3
    stops = {encoder.end_of_turn_id, encoder.tokenizer.eos_token_id}
    expected = [
        encoder.tokenizer.decode(greedy(model, prompt, 12, stops), skip_special_tokens=True).strip()
        for prompt in prompts
    ]
    assert write_answers(model, encoder, prompts, 12, 1) == expected
    assert write_answers(model, encoder, prompts, 12, 3) == expected
    assert write_answers(model, encoder, prompts, 12, 2) == expected
    assert len(set(expected)) > 1


def always_say(model: torch.nn.Module, tokens: list[int]) -> None:
    """Makes the model answer with these tokens, one a forward pass, and then with the last one again and again."""
    left = iter(tokens)

    def hook(module, args, output):
        output.logits = torch.zeros(1, 1, model.config.vocab_size)
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
    assert write_answers(model, encoder, [prompt], 20, 1) == ["sky"]


@torch.no_grad()
def test_answer_is_not_longer_than_asked(loaded) -> None:
    model, encoder = loaded("gpt2")
    prompt = encoder.prompt_ids(PROMPTS[0])
    word = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
    always_say(model, word)
    assert write_answers(model, encoder, [prompt], 5, 1) == ["aaaaa"]


@torch.no_grad()
def test_answer_ends_where_the_model_has_no_more_positions(loaded) -> None:
    model, encoder = loaded("gpt2")
    word = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
    always_say(model, word)
    assert write_answers(model, encoder, [word * 510], 64, 1) == ["aa"]  # 512 positions


def test_questions_are_asked_once_before_and_after(loaded) -> None:
    model, encoder = loaded("llama")
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    pairs = preferences(3)
    again = [pairs[0], *pairs]  # a question of two pairs
    encoded = list(encoder.encode(again))
    samples = compare_answers(Policies(tuned), encoder, encoded, count=2, max_new_tokens=6, batch_size=8)
    assert [sample["prompt"] for sample in samples] == [pair.prompt[-1]["content"] for pair in pairs[:2]]
    assert [sample["chosen"] for sample in samples] == [pair.chosen for pair in pairs[:2]]
    prompts = [encoder.prompt_ids(pair.prompt) for pair in pairs[:2]]
    with torch.no_grad():
        tuned.eval()
        after = write_answers(tuned, encoder, prompts, 6, 1)
        with tuned.disable_adapter():
            before = write_answers(tuned, encoder, prompts, 6, 1)
    assert [sample["before"] for sample in samples] == before
    assert [sample["after"] for sample in samples] == after
    assert before != after


def test_no_questions_no_samples(loaded) -> None:
    model, encoder = loaded("llama")
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    encoded = list(encoder.encode(preferences(2)))
    assert compare_answers(Policies(tuned), encoder, encoded, count=0, max_new_tokens=4, batch_size=2) == []
    assert compare_answers(Policies(tuned), encoder, [], count=2, max_new_tokens=4, batch_size=2) == []
