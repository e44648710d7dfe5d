from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Thread

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.merging.merge import Request, merge
from tests.adapters import spoil

GREEDY = Sampling(max_new_tokens=8)


def opened(word: str, **options) -> ChatModel:
    return ChatModel(find_model(word, **options))


def prompt_of(model: ChatModel, text: str = "Do bats see?") -> list[int]:
    return model.encoder.prompt_ids(user(text))


def written(model: ChatModel, sampling: Sampling = GREEDY, *, base: bool = False) -> list[int]:
    with model.write(prompt_of(model), sampling, base=base) as writing:
        text = "".join(writing)
    assert text == writing.answer["text"]
    return writing.answer["ids"]


@torch.no_grad()
def plain(ids: list[int], stops: set[int], adapter: str | None = None) -> list[int]:
    """Returns the greedy answer of Transformers and PEFT themselves, without a cache."""
    model = AutoModelForCausalLM.from_pretrained("base")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    answer: list[int] = []
    while len(answer) < 8 and not set(answer) & stops:
        answer.append(model.eval()(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax().item())
    return answer


@pytest.mark.parametrize("word", ["runs/small", "adapter", "merged"])
def test_it_answers_as_trained_and_as_its_base(work: Path, word: str) -> None:
    model = opened(word)
    ids = prompt_of(model)
    tuned, base = (plain(ids, model.encoder.stops, adapter) for adapter in ("adapter", None))
    assert tuned != base
    assert written(model) == tuned
    assert written(model, base=True) == base
    assert written(model) == tuned
    assert [answer["ids"] for answer in model.answers([ids, ids], GREEDY)] == [tuned, tuned]


def test_a_seed_makes_a_drawn_answer_repeatable(work: Path) -> None:
    model = opened("adapter")
    drawn = Sampling(max_new_tokens=8, temperature=2.0, seed=1)
    once = written(model, drawn)
    assert written(model, drawn) == once == model.answers([prompt_of(model)], drawn)[0]["ids"]
    others = {tuple(written(model, Sampling(max_new_tokens=8, temperature=2.0, seed=seed))) for seed in range(2, 5)}
    assert others - {tuple(once)}


def test_an_answer_can_be_stopped(work: Path) -> None:
    model = opened("adapter")
    model.load()
    with model.write(prompt_of(model), Sampling(max_new_tokens=400, temperature=5.0, seed=0)) as writing:
        next(iter(writing))
        writing.stop()
        list(writing)
    assert 0 < len(writing.answer["ids"]) < 400
    assert not writing.answer["ended"]


def test_conversations_that_share_it_do_not_disturb_each_other(work: Path) -> None:
    model = opened("adapter")
    expected = {base: written(model, base=base) for base in (False, True)}
    found: list[tuple[bool, list[int]]] = []
    threads = [
        Thread(target=lambda base=base: found.append((base, written(model, base=base)))) for base in (True, False) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(answer == expected[base] for base, answer in found)


def test_a_base_that_is_loaded_at_once_is_not_loaded_by_its_first_answer(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("merged")
    loaded = model.load(base=True)
    assert loaded.base is not None
    monkeypatch.setattr(ChatModel, "_loaded_base", lambda self: pytest.fail("it is loaded twice"))
    assert written(model, base=True) != written(model)
    assert model.load(base=True) is model.load() is loaded


def test_a_model_that_names_no_base(work: Path) -> None:
    model = opened("base")
    assert model.base_name is None
    with pytest.raises(UserError, match=r"^base does not say which model it was before .*\nName it: --base MODEL\."):
        written(model, base=True)


def test_what_has_changed_is_refused(work: Path, tmp_path: Path) -> None:
    for word in ("adapter", "merged"):
        copy = shutil.copytree(word, tmp_path / word)
        spoil(next(copy.glob("*.safetensors")))
        with pytest.raises(UserError, match="The weights in .* are not those that were saved there"):
            opened(str(copy))
    other = shutil.copytree("base", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is another model than the one that adapter was trained on"):
        opened("adapter", base=str(other))


def test_a_base_that_reads_other_tokens_is_no_base_to_compare_with(work: Path, tiny_models) -> None:
    model = opened("merged", base=str(tiny_models("gemma2")))
    with pytest.raises(UserError, match="The tokenizer of merged is not that of its base"):
        written(model, base=True)


def test_what_cannot_be_read(work: Path, tmp_path: Path) -> None:
    broken = shutil.copytree("merged", tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(UserError, match="config.json cannot be read"):
        opened(str(broken))


def test_a_merged_model_whose_tokenizer_was_changed(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(Request([str(work / "adapter")], out))
    assert ChatModel(find_model(str(out))).positions is not None
    content = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary)[100:102]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (out / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="The tokens in .*out are not those that were saved there"):
        ChatModel(find_model(str(out)))
