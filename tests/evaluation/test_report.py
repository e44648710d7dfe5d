from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lora_dpo.evaluation import report as report_module
from lora_dpo.evaluation.report import Report, print_report, write_report
from lora_dpo.recipe.run_folder import RunFolder
from tests.small import small_recipe

DATA = {"splits": {name: {"pairs": n, "groups": n - 1} for name, n in (("train", 9), ("validation", 3), ("test", 5))}}
PREFERENCE = {
    "before": {"accuracy": 0.5, "margin": -1.25, "n_pairs": 5, "n_groups": 4},
    "after": {"accuracy": 0.875, "margin": 2.0, "n_pairs": 5, "n_groups": 4},
}
SAMPLES = [
    {"prompt": "Why?\nReally [b]why[/b]?", "before": "", "after": "So.", "chosen": "Because."},
    {"prompt": "Who?", "before": "He.", "after": "She.", "chosen": "They."},
]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    recipe = small_recipe("org/model", tmp_path)
    return Report(recipe, DATA, steps=2, seconds=90.04, preference=PREFERENCE, samples=SAMPLES)


def test_json_keys_are_stable(report: Report) -> None:
    content = json.loads(json.dumps(report.as_json()))
    assert content == {
        "schema_version": 1,
        "run": "small",
        "model": "org/model",
        "training": {"steps": 2, "seconds": 90.0},
        "data": DATA,
        "preference": PREFERENCE,
        "samples": SAMPLES,
    }


def test_markdown(report: Report) -> None:
    run = RunFolder.of(report.recipe)
    write_report(report, run, [run.plots / "loss.png", run.plots / "training.png"])
    lines = run.report_md.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# small"
    assert "org/model, lora, sigmoid with beta 0.1, 2 steps of 4 pairs in 1.5 minutes." in lines
    assert "## Preference on 5 held-out pairs of 4 questions" in lines
    table = lines.index("| | before | after | change |")
    assert lines[table + 1 : table + 4] == [
        "|---|--:|--:|--:|",
        "| accuracy | 50.0% | 87.5% | +37.5 points |",
        "| margin | -1.25 | +2.00 | +3.25 nats |",
    ]
    assert "**Why? Really [b]why[/b]?**" in lines
    assert "- before: (nothing)" in lines
    assert "- chosen: They." in lines
    assert "![loss, reward margin, accuracy and learning rate](plots/training.png)" in lines
    assert not any("loss.png" in line for line in lines)
    assert json.loads(run.report_json.read_text()) == report.as_json()
    assert run.is_complete


def test_without_a_test_split(report: Report) -> None:
    run = RunFolder.of(report.recipe)
    write_report(Report(report.recipe, DATA, 2, 1.0, None, []), run, [run.plots / "training.png"])
    assert json.loads(run.report_json.read_text())["preference"] is None
    text = run.report_md.read_text()
    assert "Preference" not in text
    assert "Answers" not in text


def test_printed(report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w") as file:
        console = Console(width=100, file=file)
        monkeypatch.setattr(report_module, "out", console)
        print_report(report.as_json(), RunFolder.of(report.recipe))
    text = (tmp_path / "shown").read_text()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") == 5]
    assert ["accuracy", "50.0%", "87.5%", "+37.5 points"] in rows
    assert ["margin", "-1.25", "+2.00", "+3.25 nats"] in rows
    assert "Really [b]why[/b]?" in text
    assert "(nothing)" in text
    assert str(RunFolder.of(report.recipe).report_md) in text
