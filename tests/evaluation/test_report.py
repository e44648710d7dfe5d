from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lora_dpo.evaluation import report as report_module
from lora_dpo.evaluation.evaluate import Measured
from lora_dpo.evaluation.outcomes import Outcome
from lora_dpo.evaluation.report import Report, print_report, write_report
from lora_dpo.recipe.run_folder import RunFolder
from tests.small import small_recipe

DATA = {"splits": {name: {"pairs": n, "groups": n - 1} for name, n in (("train", 9), ("validation", 3), ("test", 5))}}


def comparison(before: float, after: float, ci95: tuple[float, float]) -> dict:
    counts = {"n": 4, "better": 3, "worse": 0, "equal": 1}
    return {"before": before, "after": after, "difference": after - before, "ci95": ci95, "p": 0.0125, **counts}


PREFERENCE = {
    "n_pairs": 5,
    "n_groups": 4,
    "accuracy": comparison(0.5, 0.875, (0.125, 0.5)),
    "normalised_accuracy": comparison(0.5, 0.5, (0.0, 0.0)),
    "margin": comparison(-1.25, 2.0, (1.0, 5.5)),
}
CHOICE = {
    "version": "of today",
    "prompt_style": "harness",
    "prompt_example": "Q: Why?\nA:",
    "mc0": None,
    "mc1": comparison(0.25, 0.5, (-0.1, 0.6)),
    "mc2": comparison(0.3, 0.4, (0.05, 0.15)),
}
STYLE = {key: comparison(0.25, 0.5, (0.0, 0.5)) for key in ("words", "repetition", "refusal", "ended")}
GENERATION = {
    "n": 2,
    "max_new_tokens": 9,
    "greedy": {"tokens": comparison(12.5, 10.0, (-5.0, 0.0)), **STYLE},
    "sampled": STYLE,
    "judges": [
        {
            "judge": "org/judge",
            "agreement": {"of": "answers", "agreement": 0.75, "majority": 0.6, "n": 1234},
            "score": comparison(-0.1, 0.2, (0.1, 0.5)),
            "wins": {"win": 3, "loss": 0, "tie": 1},
        }
    ],
}
COST = {"kl_per_token": 0.1251, "perplexity_before": 20.0, "perplexity_after": 21.0, "text": "plain.txt"}
TRAINING = {"steps": 2, "seconds": 90.0}
NO_DIFFERENCE = (
    "No difference that can be told from chance: MC1 25.0% -> 50.0% on 4 held-out questions (+25.0 points, "
    "95 % interval -10.0 to +60.0)."
)
SAMPLES = [
    {"prompt": "Why?\nReally [b]why[/b]?", "before": "", "after": "So.", "chosen": "Because."},
    {"prompt": "Who?", "before": "He.", "after": "She.", "chosen": "They."},
]


TASK = {"task": "arc", "version": "1.0", "metric": "acc", "higher_is_better": True, "n": 9, "shots": 0}
HARNESS = {
    "package": "lm-eval 0.4.13",
    "chat_template": False,
    "limit": 9,
    "tasks": [
        {**TASK, "filter": "none", "before": 0.5, "after": 0.75, "stderr_before": 0.125, "stderr_after": None},
        {**TASK, "filter": "strict", "before": 0.5, "after": None, "stderr_before": 0.125, "stderr_after": None},
    ],
}
SUBJECT = {"kind": "adapter", "name": "tuned", "place": "some/tuned", "data": "facts.jsonl", "base": "org/model"}

TEXTS = {"best": "So", "favourite before": "Thus", "favourite after": "So"}
OUTCOME = Outcome("g1", "Why\nso?", "Reasons", {"mc2": 0.25}, {"mc2": 0.75}, {**TEXTS, "chosen": "So"})
EXAMPLE = {
    "prompt": "Why\nso?",
    "category": "Reasons",
    "metric": "mc2",
    "before": 0.25,
    "after": 0.75,
    "texts": TEXTS,
}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    recipe = small_recipe("org/model", tmp_path)
    measured = Measured(PREFERENCE, CHOICE, [OUTCOME], GENERATION, COST, SAMPLES)
    return Report(recipe, DATA, TRAINING, measured, ["Mind [this]."])


def test_json_keys_are_stable(report: Report) -> None:
    content = json.loads(json.dumps(report.as_json()))
    assert content == {
        "schema_version": 2,
        "run": "small",
        "model": "org/model",
        "subject": None,
        "verdict": NO_DIFFERENCE,
        "training": TRAINING,
        "data": DATA,
        "multiple_choice": json.loads(json.dumps(CHOICE)),
        "preference": json.loads(json.dumps(PREFERENCE)),
        "generation": json.loads(json.dumps(GENERATION)),
        "cost": COST,
        "harness": None,
        "examples": {"improved": [EXAMPLE], "worse": []},
        "samples": SAMPLES,
        "caveats": ["Mind [this].", "4 held-out questions are few: mind the intervals, not the differences."],
    }


def test_markdown(report: Report) -> None:
    run = RunFolder.of(report.recipe)
    write_report(report, run, [run.plots / "loss.png", run.plots / "training.png", run.plots / "evaluation.png"])
    lines = run.report_md.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# small"
    assert "org/model, lora, sigmoid with beta 0.1, 2 steps of 4 pairs in 1.5 minutes." in lines
    assert f"**{NO_DIFFERENCE}**" in lines
    table = lines.index("|  | before | after | change | 95 % interval | p |")
    assert lines[table + 1 : table + 12] == [
        "|---|--:|--:|--:|--:|--:|",
        "| MC1 | 25.0% | 50.0% | +25.0 | -10.0 to +60.0 | 0.0125 |",
        "| MC2 | 30.0% | 40.0% | +10.0 | +5.0 to +15.0 | 0.0125 |",
        "| preference accuracy | 50.0% | 87.5% | +37.5 | +12.5 to +50.0 | 0.0125 |",
        "| accuracy per token | 50.0% | 50.0% | +0.0 | +0.0 to +0.0 | 0.0125 |",
        "| margin, nats | -1.25 | +2.00 | +3.25 | +1.00 to +5.50 | 0.0125 |",
        "| answer's tokens | 12.5 | 10.0 | -2.50 | -5.00 to +0.00 | 0.0125 |",
        *(
            f"| {name} | 25.0% | 50.0% | +25.0 | +0.0 to +50.0 | 0.0125 |"
            for name in ("repetition", "refusals", "ended by itself")
        ),
        "| judge judge | -0.100 | +0.200 | +0.300 | +0.100 to +0.500 | 0.0125 |",
    ]
    assert "- Perplexity of unrelated text (plain.txt): 20.00 -> 21.00 (+5.0 %)." in lines
    assert "- Distance from the model before, on sampled answers: 0.125 nats a token." in lines
    judged = (
        "- Judge judge agrees with people on 75.0% of 1,234 labelled answers (always saying the same: 60.0%); by it "
    )
    assert f"{judged}3 answers became better, 0 worse, 1 neither." in lines
    counts = "Held out: 4 questions, put as the benchmark does; 5 pairs of 4 questions; 2 answers; "
    assert any(line.startswith(counts) for line in lines)
    prompt = lines.index("Multiple choice (of today), the first prompt:")
    assert lines[prompt + 2 : prompt + 4] == ["    Q: Why?", "    A:"]
    assert "**Why? Really [b]why[/b]?**" in lines
    assert "- before: (nothing)" in lines
    assert "- chosen: They." in lines
    assert "![loss, reward margin, accuracy and learning rate](plots/training.png)" in lines
    assert "![margins, accuracy by category and lengths of answers, before and after](plots/evaluation.png)" in lines
    assert not any("loss.png" in line for line in lines)
    better = lines.index("## What got better")
    example = "- **Why so?** MC2 0.25 -> 0.75. best: *So*; favourite before: *Thus*; favourite after: *So*"
    assert lines[better + 2] == example
    assert "## What got worse" not in lines
    assert lines[lines.index("## What to keep in mind") + 2] == "- Mind [this]."
    assert json.loads(run.report_json.read_text()) == json.loads(json.dumps(report.as_json()))
    assert run.is_complete


def test_without_a_test_split(report: Report) -> None:
    run = RunFolder.of(report.recipe)
    write_report(Report(report.recipe, DATA, TRAINING, Measured()), run, [run.plots / "training.png"])
    content = json.loads(run.report_json.read_text())
    assert (content["preference"], content["multiple_choice"]) == (None, None)
    assert content["verdict"] == "Nothing was held out, so there is nothing to say of it."
    text = run.report_md.read_text()
    assert "Before and after" not in text
    assert "Answers" not in text
    assert "keep in mind" not in text
    assert "What got" not in text


def test_printed(report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w") as file:
        console = Console(width=100, file=file)
        monkeypatch.setattr(report_module, "out", console)
        run = RunFolder.of(report.recipe)
        write_report(report, run, [])
        print_report(report.as_json(), run)
    text = (tmp_path / "shown").read_text()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") == 7]
    assert ["preference accuracy", "50.0%", "87.5%", "+37.5", "+12.5 to +50.0", "0.0125"] in rows
    assert ["margin, nats", "-1.25", "+2.00", "+3.25", "+1.00 to +5.50", "0.0125"] in rows
    assert "Really [b]why[/b]?" in text
    assert "- Mind [this]." in text
    assert "(nothing)" in text
    assert f"report    {run.report_md}" in text
    assert "adapter" not in text


@pytest.fixture
def strange(report: Report) -> Report:
    """A report of an adapter from elsewhere."""
    data = {"splits": {"train": {"pairs": 0, "groups": 0}, "test": {"pairs": 5, "groups": 4}}}
    return Report(report.recipe, data, None, Measured(), ["Unknown."], subject=SUBJECT, harness=HARNESS)


def test_what_was_trained_elsewhere(strange: Report) -> None:
    output = RunFolder.of(strange.recipe)
    write_report(strange, output, [])
    content = json.loads(output.report_json.read_text())
    assert (content["training"], content["subject"], content["harness"]) == (None, SUBJECT, HARNESS)
    assert content["verdict"] == "Nothing was held out; lm-evaluation-harness found the numbers below."
    lines = output.report_md.read_text().splitlines()
    assert "some/tuned, compared with org/model." in lines
    assert "## Training" not in lines
    assert lines[-1].startswith("Pairs of facts.jsonl: test 5 (4 questions). [report.json](report.json) has the hashes")


def test_the_harness_s_numbers(strange: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = RunFolder.of(strange.recipe)
    write_report(strange, output, [])
    lines = output.report_md.read_text().splitlines()
    table = lines.index("## lm-evaluation-harness")
    assert lines[table + 2 : table + 8] == [
        "| task | metric | before | after | change | n |",
        "|---|--:|--:|--:|--:|--:|",
        "| arc | acc | 0.5000 ± 0.1250 | 0.7500 | +0.2500 | 9 |",
        "| arc | acc, strict | 0.5000 ± 0.1250 |  |  | 9 |",
        "",
        "lm-eval 0.4.13, no chat template, the first 9 documents of each task; ± is its standard error.",
    ]
    with (tmp_path / "shown").open("w") as file:
        monkeypatch.setattr(report_module, "out", Console(width=100, file=file))
        print_report(strange.as_json(), output)
    text = (tmp_path / "shown").read_text()
    assert "0.5000 ± 0.1250" in text
    assert "no chat template" in text
