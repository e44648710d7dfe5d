from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.cluster.start import Request
from lora_dpo.evaluation.outcomes import read_outcomes
from lora_dpo.files import remove
from lora_dpo.recipe.run_folder import RunFolder
from tests.process import lora_dpo, run_python

RECIPE = """
model: {name: MODEL}
adapter: {r: 4}
data: {limit: 60, split: {validation: 0.1}}
train: {strategy: single, learning_rate: 1e-3, max_steps: 2, global_batch_size: 4, keep_checkpoints: 0}
evaluation: {samples: 2, max_new_tokens: 4, folds: 2}
run: {name: folded}
"""


def test_going_on_neither_replaces_nor_begins_elsewhere() -> None:
    request = Request("a b.yaml", ("run.resume=old", "train.epochs=2"), overwrite=True, processes=2)
    assert request.again(began=True) == "lora-dpo dpo 'a b.yaml' train.epochs=2 --processes 2"
    assert request.again(began=False) == (
        "lora-dpo dpo 'a b.yaml' run.resume=old train.epochs=2 --processes 2 --overwrite"
    )


@pytest.fixture(scope="module")
def folded(tmp_path_factory, tiny_models) -> Path:
    """Returns a folder in which a recipe with two folds has been trained."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "r.yaml").write_text(RECIPE.replace("MODEL", str(tiny_models("llama"))), encoding="utf-8")
    first = lora_dpo("dpo", "r.yaml", cwd=folder, CUDA_VISIBLE_DEVICES="")
    assert first.returncode == 0, first.stderr
    assert [line for line in first.stderr.splitlines() if line.startswith("Fold ")] == ["Fold 1 of 2:", "Fold 2 of 2:"]
    return folder


def test_every_question_is_held_out_once_and_all_are_pooled(folded: Path) -> None:
    run = RunFolder(folded / "runs" / "folded")
    parts = [read_outcomes(run.path / f"fold-{number}" / "evaluation" / "questions.jsonl") for number in (1, 2)]
    groups = [{each.group for each in part} for part in parts]
    assert groups[0] & groups[1] == set()
    assert read_outcomes(run.outcomes) == [*parts[0], *parts[1]]
    report = json.loads(run.report_json.read_text(encoding="utf-8"))
    folds = [json.loads((run.path / f"fold-{n}" / "report.json").read_text(encoding="utf-8")) for n in (1, 2)]
    for part, metric in (("multiple_choice", "mc2"), ("preference", "margin")):
        own = [fold[part][metric] for fold in folds]
        total = sum(each["n"] for each in own)
        assert report[part][metric]["n"] == total == len(groups[0] | groups[1])
        for when in ("before", "after"):
            mean = sum(each["n"] * each[when] for each in own) / total
            assert report[part][metric][when] == pytest.approx(mean)
        assert [fold["difference"][metric] for fold in report["folds"]] == [each["difference"] for each in own]
    assert report["training"]["steps"] == 4
    assert report["generation"]["n"] == 4
    page = run.report_md.read_text(encoding="utf-8")
    assert "[fold-2](fold-2/report.md)" in page
    assert "## The folds" in page
    assert (run.plots / "evaluation.png").is_file()


def test_what_is_finished_is_not_trained_again(folded: Path) -> None:
    run = RunFolder(folded / "runs" / "folded")
    shown = lora_dpo("dpo", "r.yaml", cwd=folded, CUDA_VISIBLE_DEVICES="")
    assert "is finished; this is its report" in shown.stderr
    before = run.report_json.read_bytes()
    for file in run.path.iterdir():
        if not file.name.startswith("fold-"):  # as if the folds had been jobs of their own
            remove(file)
    metrics = (run.path / "fold-2" / "metrics.jsonl").stat().st_mtime_ns
    again = lora_dpo("dpo", "r.yaml", cwd=folded, CUDA_VISIBLE_DEVICES="")
    assert again.returncode == 0, again.stderr
    assert "Fold 1 of 2 is finished: runs/folded/fold-1" in again.stderr
    assert run.report_json.read_bytes() == before
    assert run.is_run
    assert (run.path / "fold-2" / "metrics.jsonl").stat().st_mtime_ns == metrics


def test_a_dry_run_shows_every_launch_and_writes_nothing(folded: Path) -> None:
    result = lora_dpo("dpo", "r.yaml", "run.name=dry", "--dry-run", cwd=folded, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("$ ")]
    assert [
        f"data.split.fold={number} run.folder=runs/dry run.name=fold-{number}" in line
        for line, number in zip(lines, (1, 2), strict=True)
    ] == [True, True]
    assert not (folded / "runs" / "dry").exists()


def test_a_launcher_is_told_that_it_starts_one(folded: Path) -> None:
    result = run_python("-m", "lora_dpo.dpo", "r.yaml", "run.name=other", cwd=folded, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "evaluation.folds 2 stands for 2 trainings" in result.stderr
    assert not (folded / "runs" / "other").exists()


def test_a_fold_that_cannot_begin_leaves_nothing(folded: Path) -> None:
    words = ("r.yaml", "evaluation.folds=900", "run.name=many")
    result = lora_dpo("dpo", *words, cwd=folded, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "data.split.folds is 900, but there are only" in result.stderr
    assert not (folded / "runs" / "many").exists()
