"""The verb `eval`, from its words to what it leaves."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_dpo.cli import app
from lora_dpo.data.manifest import read_pairs
from lora_dpo.errors import UserError
from lora_dpo.eval import main
from lora_dpo.evaluating import join_processes
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.run_folder import RunFolder
from tests.alike import assert_alike
from tests.evaluation.tasks import COUNT, write_tasks
from tests.machine import read_only
from tests.process import lora_dpo, struck

SMALL = ["evaluation.samples=2", "evaluation.max_new_tokens=4"]


@pytest.fixture
def work(trained: RunFolder) -> RunFolder:
    """Returns the run `runs/small`; beside it lie a copy of its adapter, `copy`, and a test set, `test.jsonl`."""
    shutil.copytree(trained.adapter, "copy")
    write_test_set(Path("test.jsonl"), 6)
    return trained


def write_test_set(file: Path, count: int) -> None:
    rows = [
        {"prompt": f"What is {n} plus {n + 3}?", "chosen": f"It is {2 * n + 3}.", "rejected": "Nobody knows that."}
        for n in range(count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def contents(folder: Path | str = ".") -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def read(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))


def kept(folder: str) -> Counter[tuple[str, str]]:
    """Returns how often each value was written down, by what it is and by its name."""
    found: Counter[tuple[str, str]] = Counter()
    for file in Path(folder).glob("evaluation/*/*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a line that is being written, or was when the process was killed
                found[file.name.partition(".")[0], json.loads(line)[0]] += 1
    return found


def test_a_run_is_measured_again_and_finds_the_same(work: RunFolder) -> None:
    before = read("runs/small")
    result = lora_dpo("eval", "runs/small", "--json", cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == before == read("runs/small")
    assert "The report is in runs/small" in result.stderr


def test_a_run_on_another_test_set_keeps_its_own_report(work: RunFolder, capfd) -> None:
    before = contents(work.path)
    main(["runs/small", "--data", "test.jsonl", "evaluation.samples=3"])
    report = read("runs/small/evaluation/test")
    assert report["data"]["splits"]["test"]["pairs"] == report["preference"]["n_pairs"] == 6
    assert (report["generation"]["n"], report["training"]["steps"]) == (3, 2)
    subject = {"kind": "run", "name": "small", "place": None, "data": "test.jsonl"}
    assert {key: report["subject"][key] for key in subject} == subject
    assert "runs/small/evaluation/test/report.md" in capfd.readouterr().out
    assert Path("runs/small/evaluation/test/plots/evaluation.png").is_file()
    after = contents(work.path)
    changed = {name for name in before if after[name] != before[name]}
    assert all(name.startswith("runs/small/evaluation/") and name.endswith(".jsonl") for name in changed)


def test_an_adapter_from_elsewhere_is_that_of_its_run(work: RunFolder, capfd) -> None:
    main(["copy", "--data", "test.jsonl", *SMALL])
    said = capfd.readouterr()
    assert said.err.count("Its training data is unknown") == 1
    report = read("evaluations/copy-on-test")
    assert report["caveats"][0].startswith("Its training data is unknown, so overlap")
    provenance = json.loads(work.provenance.read_text())["model"]
    assert report["subject"]["base_weights_sha256"] == provenance["weights_sha256"]
    assert (report["subject"]["place"], report["subject"]["base"]) == ("copy", provenance["name"])
    main(["runs/small", "--data", "test.jsonl", *SMALL])
    own = read("runs/small/evaluation/test")
    for part in ("preference", "generation", "cost", "samples", "examples"):
        assert report[part] == own[part]


def test_what_is_known_is_not_computed_again(work: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["copy", "--data", "test.jsonl", *SMALL]
    main(words)
    first, times = contents("evaluations"), kept("evaluations/copy-on-test")
    assert len(times) > 20
    monkeypatch.setattr(Work, "_keep", lambda self, what, values: pytest.fail(f"computed again: {what}"))
    main(words)
    assert contents("evaluations") == first
    other = AutoModelForCausalLM.from_pretrained(work.load_recipe().model.name)
    other.lm_head.weight.data.mul_(1.01)
    other.save_pretrained("base")
    AutoTokenizer.from_pretrained("copy").save_pretrained("base")
    Path("copy/provenance.json").unlink()
    with pytest.raises(pytest.fail.Exception, match="computed again"):  # another base is another reference
        main([*words, "--base", "base"])


def test_a_whole_model(work: RunFolder) -> None:
    name = work.load_recipe().model.name
    shutil.copytree(name, "whole")
    main(["whole", "--base", name, "--data", "test.jsonl", *SMALL, "--output", "results"])
    report = read("results")
    assert report["subject"]["kind"] == "model"
    assert report["preference"]["margin"]["difference"] == 0.0
    assert report["cost"]["kl_per_token"] == pytest.approx(0.0, abs=1e-9)
    assert not Path("evaluations").exists()


def test_a_run_of_somebody_else(work: RunFolder) -> None:
    before = contents(work.path)
    with read_only(work.path):
        main(["runs/small", *SMALL, "--output", "mine"])
    assert contents(work.path) == before
    assert read("mine")["multiple_choice"] == read("runs/small")["multiple_choice"]
    assert len(kept("mine")) > 20


def test_a_checkpoint(work: RunFolder) -> None:
    main(["runs/small/checkpoints/step-1", *SMALL])
    report, last = read("runs/small/evaluation/step-1"), read("runs/small")
    assert report["multiple_choice"]["mc2"]["before"] == last["multiple_choice"]["mc2"]["before"]
    assert report["multiple_choice"]["mc2"]["after"] != last["multiple_choice"]["mc2"]["after"]
    assert (report["run"], report["training"]) == ("small", None)


def test_exported_answers(work: RunFolder, capfd) -> None:
    before = contents()
    main(["runs/small", "--export", "alpaca-eval", "evaluation.max_new_tokens=3"])
    said = capfd.readouterr()
    files = [f"runs/small/alpaca_eval/small-{when}.json" for when in ("before", "after")]
    assert said.out.split() == files
    assert "Judge them with: alpaca_eval --model_outputs" in said.err
    new = {name for name in contents() if name not in before}
    assert set(files) <= new
    assert all(name in files or name.startswith("runs/small/evaluation/") for name in new)
    assert len(json.loads(Path(files[0]).read_text())) == 5


def test_exported_answers_are_longer_than_a_report_s(work: RunFolder, capfd) -> None:
    Path("one.json").write_text(json.dumps([{"instruction": "Go on and on."}]))
    main(["copy", "--export", "alpaca-eval", "--questions", "one.json", "--output", "out", "--json"])
    files = json.loads(capfd.readouterr().out)["files"]
    tokenizer = AutoTokenizer.from_pretrained("copy")
    (answer,) = json.loads(Path(files[0]).read_text())
    assert len(tokenizer(answer["output"])["input_ids"]) > 200  # the model has 512 positions
    assert not Path("out/report.json").exists()


def test_tasks_of_the_harness(work: RunFolder) -> None:
    pytest.importorskip("lm_eval")
    write_tasks(Path("tasks").absolute())
    main(["copy", "--harness", "facts", "--harness-path", "tasks", "--limit", "3"])
    report = read("evaluations/copy")
    (number,) = report["harness"]["tasks"]
    assert (number["task"], number["n"], report["harness"]["limit"]) == ("facts", 3, 3)
    assert (report["preference"], report["multiple_choice"]) == (None, None)
    assert "| facts | acc |" in Path("evaluations/copy/report.md").read_text()
    main(["runs/small", "--harness", "facts", "--harness-path", "tasks"])
    own = read("runs/small")
    assert own["harness"]["tasks"][0]["n"] == COUNT
    assert own["multiple_choice"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/smal"], "There is no run, adapter or model at runs/smal.\nDid you mean 'runs/small'?"),
        (["copi", "--data", "test.jsonl"], "copi is neither a folder here, nor"),
        (["copy"], "copy has no held-out data of its own"),
        (["copy", "--data", "tset.jsonl"], "data.path: there is no file or folder 'tset.jsonl'\nDid you mean"),
        (["runs/small", "--data", "empty.jsonl"], "empty.jsonl: the file is empty"),
        (["copy", "--data", "same.jsonl"], "same.jsonl: the test set holds no usable pair\nLeft out: 1 identical."),
        (["runs/small", "--data", "met.jsonl"], "1 of the 1 questions of the test set stand in the training data"),
        (["runs/small", "train.epochs=2"], "train.epochs cannot be set for an evaluation of a run"),
        (["runs/small", "evaluation.folds=2"], "evaluation.folds cannot be set for an evaluation"),
        (["runs/small", "evaluation.sampels=2"], "command line: evaluation.sampels=2: unknown key"),
        (["runs/small", "--base", "x"], "--base x has no meaning for runs/small"),
        (["runs/small/data"], "runs/small/data holds neither a run nor an adapter nor a model."),
        (["copy", "--data", "test.jsonl", "--output", "runs/small"], "runs/small is a run, so it cannot hold"),
        (["runs/small", "--export", "mt-bench"], "--export mt-bench needs --questions FILE."),
        (["runs/small", "--export", "alpaca-eval", "--questions", "no.json"], "no.json: there is no such file"),
        (["copy", "--export", "alpaca-eval"], "copy has no held-out data of its own"),
        (["runs/small", "--questions", "q.json"], "--questions has no meaning without --export."),
        (["runs/small", "--limit", "3"], "--limit has no meaning without --harness."),
        (["runs/small", "--harness-path", "tasks"], "--harness-path has no meaning without --harness."),
        (["runs/small", "--export", "alpaca-eval", "--harness", "x"], "--export writes answers and no report"),
    ],
    ids=" ".join,
)
def test_bad_input_ends_with_code_2_and_nothing_written(words: list[str], message: str, work: RunFolder, capfd) -> None:
    Path("empty.jsonl").touch()
    Path("same.jsonl").write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "So."}))
    met = read_pairs(work.data / "pairs.jsonl")["train"][0].prompt[-1]["content"]
    Path("met.jsonl").write_text(json.dumps({"prompt": met, "chosen": "Yes.", "rejected": "No."}))
    before = contents()
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capfd.readouterr()
    assert f"Error: {message}" in said.err
    assert said.out == ""
    assert contents() == before


def test_a_run_that_is_not_finished_or_has_lost_its_adapter(work: RunFolder, capfd) -> None:
    shutil.rmtree(work.adapter)
    with pytest.raises(SystemExit, match="2"):
        main(["runs/small"])
    assert "Error: runs/small has no adapter" in capfd.readouterr().err
    work.report_json.unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["runs/small"])
    assert "Error: runs/small holds no finished run." in capfd.readouterr().err


def test_a_typo_is_a_sentence_of_the_command_too(work: RunFolder) -> None:
    result = lora_dpo("eval", "runs/smal", cwd=Path.cwd())
    assert result.returncode == 2
    assert result.stderr == "Error: There is no run, adapter or model at runs/smal.\nDid you mean 'runs/small'?\n"
    assert result.stdout == ""


def test_processes_that_do_not_know_each_other_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as under a launcher, but there is no other process
    with pytest.raises(UserError, match="The launcher has started 2 processes, but 1 know of each other"):
        join_processes()


def test_the_examples_of_the_help_can_be_typed() -> None:
    command = typer.main.get_command(app).commands["eval"]
    examples = [shlex.split(example)[2:] for example in command.epilog.split("\n\n")[1:]]
    assert len(examples) == 7
    for words in examples:
        assert command.make_context("eval", list(words), resilient_parsing=False).params["subject"] == words[0]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(work: RunFolder) -> None:
    pytest.importorskip("lm_eval")
    write_tasks(Path("tasks").absolute())
    words = ["copy", "--data", "test.jsonl", *SMALL, "--harness", "facts,words,lonely", "--harness-path", "tasks"]
    main([*words, "--output", "one"])
    result = lora_dpo("eval", *words, "--output", "two", "--processes", "2", cwd=Path.cwd(), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("$ OMP_NUM_THREADS=")
    assert "--num_processes 2 --main_process_port 0 -m lora_dpo.eval copy " in result.stderr
    assert_alike(read("two"), read("one"))
    assert read("two")["harness"] == read("one")["harness"]
    times = kept("two")
    assert set(times.values()) == {1}
    assert times.keys() == kept("one").keys()
    assert len(list(Path("two").glob("evaluation/*/greedy-answers-after.*.jsonl"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_evaluation_goes_on(processes: int, work: RunFolder) -> None:
    write_test_set(Path("test.jsonl"), 60)
    words = ["copy", "--data", "test.jsonl", "evaluation.batch_size=1", "evaluation.max_new_tokens=8"]
    command = ("eval", *words, "--processes", str(processes))
    written = "evaluations/copy-on-test/evaluation/*/*.jsonl"
    ended = struck(signal.SIGTERM, written, *command, lines=130, cwd=Path.cwd(), CUDA_VISIBLE_DEVICES="")  # of 320
    assert ended.returncode == (-signal.SIGTERM if processes == 1 else 128 + signal.SIGTERM)
    assert ("Ended by SIGTERM. What was measured is kept" in ended.stderr) == (processes == 2)
    assert not Path("evaluations/copy-on-test/report.json").exists()
    interrupted = kept("evaluations/copy-on-test")
    main(words)
    times = kept("evaluations/copy-on-test")
    assert len(interrupted) < len(times)
    assert interrupted.keys() <= times.keys()
    assert set(times.values()) == {1}
    assert read("evaluations/copy-on-test")["preference"]["n_pairs"] == 60


@pytest.mark.slow
def test_hub_ids_of_an_adapter_and_its_base(work: RunFolder, tmp_path: Path) -> None:
    folders = {"base": work.load_recipe().model.name, "adapter": "copy"}
    for name, folder in folders.items():
        place = tmp_path / "hf" / "hub" / f"models--org--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    config = place / "snapshots" / ("a" * 40) / "adapter_config.json"
    config.write_text(config.read_text().replace(folders["base"], "org/base"))
    shutil.rmtree("copy")
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = lora_dpo("eval", "org/adapter", "--data", "test.jsonl", *SMALL, cwd=tmp_path, **hub)
    assert result.returncode == 0, result.stderr
    report = read("evaluations/org--adapter-on-test")
    assert (report["subject"]["place"], report["subject"]["base"]) == ("org/adapter", "org/base")
    assert report["preference"]["margin"]["difference"] != 0.0
    provenance = json.loads(work.provenance.read_text())["model"]
    assert report["subject"]["base_weights_sha256"] == provenance["weights_sha256"]
    unknown = lora_dpo("eval", "org/nothing", "--data", "test.jsonl", cwd=tmp_path, **hub)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith(
        "Error: org/nothing is neither a folder here, nor an adapter or a model on the Hub"
    )
