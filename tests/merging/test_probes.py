from __future__ import annotations

from pathlib import Path

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.example import Example
from lora_dpo.data.manifest import write_examples, write_pairs
from lora_dpo.data.pair import Pair, user
from lora_dpo.merging.probes import find_probes
from lora_dpo.recipe.run_folder import RunFolder
from tests.tiny import tiny_tokenizer


def asked(number: int) -> dict:
    return {"prompt": user(f"Question {number}?"), "group": f"g{number}"}


def test_questions_of_a_run_s_test_split_come_first_whichever_its_stage(tmp_path: Path) -> None:
    encoder = TurnEncoder(tiny_tokenizer("llama"))
    pairs, examples = RunFolder(tmp_path / "dpo"), RunFolder(tmp_path / "sft")
    of_pairs = [Pair(chosen="Yes", rejected="No", **asked(number)) for number in range(20)]
    of_examples = [Example(answer="Yes", **asked(number)) for number in range(20)]
    pairs.data.mkdir(parents=True)
    examples.data.mkdir(parents=True)
    write_pairs(pairs.data / "pairs.jsonl", {"train": [], "validation": [], "test": of_pairs})
    write_examples(examples.data / "examples.jsonl", {"train": [], "validation": [], "test": of_examples})
    one, other = (find_probes(run, encoder, None) for run in (pairs, examples))
    assert one.source == f"the test split of {pairs.path}"
    assert other.source == f"the test split of {examples.path}"
    assert one.questions == other.questions == [f"Question {number}?" for number in range(16)]
    assert [each.key for each in one.sequences] == [each.key for each in other.sequences]
    assert "Yes" in encoder.tokenizer.decode(one.sequences[0].ids)


def test_bundled_questions_fill_up(tmp_path: Path) -> None:
    encoder = TurnEncoder(tiny_tokenizer("llama"))
    run = RunFolder(tmp_path / "run")
    run.data.mkdir(parents=True)
    few = [Pair(chosen="Yes", rejected="No", **asked(number)) for number in range(3)]
    write_pairs(run.data / "pairs.jsonl", {"train": [], "validation": [], "test": few})
    found = find_probes(run, encoder, None)
    assert found.source == f"the test split of {run.path} and bundled/misconceptions"
    assert found.questions[:3] == ["Question 0?", "Question 1?", "Question 2?"]
    assert len(found.questions) == 16
    assert find_probes(None, encoder, None).source == "bundled/misconceptions"
