from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lora_dpo.console import out
from lora_dpo.data import preview
from lora_dpo.data.build import Prepared, prepare
from lora_dpo.recipe.schema import Recipe
from tests.tiny import tiny_tokenizer

PROMPT = "How much is one and [bold]one[/bold]?"


@pytest.fixture
def prepared(tmp_path: Path):
    def make(architecture: str, **data) -> Prepared:
        file = tmp_path / "data.jsonl"
        rows = [{"prompt": f"{PROMPT} ({n})", "chosen": f"Two.\nAlways {n}.", "rejected": "Three."} for n in range(6)]
        rows.append(rows[0])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        section = {"path": str(file), "split": {"test": 0.2, "validation": 0.0}, **data}
        recipe = Recipe.model_validate({"model": {"name": "tiny"}, "data": section, "run": {"name": "r"}})
        return prepare(recipe, tiny_tokenizer(architecture))

    return make


def shown(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, **options) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"), **options)  # noqa: SIM115 - lives with it
    monkeypatch.setattr(preview, "out", console)
    preview.print_preview(prepared)
    return console.export_text(styles=bool(options))


@pytest.mark.parametrize(
    ("architecture", "end"), [("gemma2", "<end_of_turn>"), ("llama", "<|eot_id|>"), ("gpt2", "<|endoftext|>")]
)
def test_example_as_the_model_reads_it(prepared, monkeypatch, architecture: str, end: str) -> None:
    given = prepared(architecture)
    text = shown(given, monkeypatch)
    first = given.splits["train"][0]
    tokenizer = given.encoder.tokenizer
    for line in tokenizer.decode(first.prompt_ids).splitlines():
        assert line in text  # template and square brackets as they are
    chosen = [tokenizer.decode([token]).replace("\n", "↵") for token in first.chosen_ids]
    rejected = [tokenizer.decode([token]) for token in first.rejected_ids]
    flat = text.replace("↵\n", "↵")
    assert f"chosen    {'·'.join(chosen)}· {len(chosen)} tokens" in flat
    assert f"rejected  {'·'.join(rejected)}· {len(rejected)} tokens" in flat
    assert chosen[-1] == rejected[-1] == end


def test_mask_is_in_colour(prepared, monkeypatch) -> None:
    given = prepared("llama")
    text = shown(given, monkeypatch, force_terminal=True, color_system="standard")
    assert "\x1b[30;42m<|eot_id|>" in text  # black on green: the end of turn is scored
    assert "\x1b[30;41m<|eot_id|>" in text
    assert "\x1b[2m<|begin_of_text|>" in text  # dim: the prompt is not


def test_counts_and_remarks(prepared, monkeypatch) -> None:
    text = shown(prepared("gpt2"), monkeypatch)
    rows = {line.split("│")[1].strip(): line.split("│")[2:] for line in text.splitlines() if line.count("│") == 7}
    assert [cell.strip() for cell in rows["train"][:2]] == ["5", "5"]
    assert [cell.strip() for cell in rows["validation"][:4]] == ["0", "0", "", ""]
    assert [cell.strip() for cell in rows["test"][:2]] == ["1", "1"]
    assert "Dropped: 1 duplicate." in text
    assert "The plain form" in text
    assert "for multiple choice" not in text
    assert "folded" in shown(prepared("gemma2"), monkeypatch)
    assert preview.out is not out


def test_questions_with_all_their_answers_are_counted(prepared, monkeypatch) -> None:
    given = prepared("gpt2", path="bundled/misconceptions", limit=50)
    line = "Questions with all their answers, for multiple choice: 40 train, 0 validation, 10 test."
    assert line in shown(given, monkeypatch)
