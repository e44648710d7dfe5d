from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from lora_dpo import __version__, resources
from lora_dpo.cli import app
from lora_dpo.evaluation.report import SCHEMA_VERSION
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe
from tests.process import lora_dpo, run_python

VERBS = sorted(typer.main.get_command(app).commands)
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "matplotlib"}
HELP_WITH_MODULES = """
import sys
from lora_dpo.cli import main
sys.argv = ["lora-dpo", *sys.argv[1:]]
try:
    main()
finally:
    print("MODULES", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
EMPTY = {
    "schema_version": SCHEMA_VERSION,
    "verdict": "Nothing was held out.",
    **dict.fromkeys(("multiple_choice", "preference", "generation", "cost")),
    "samples": [],
    "caveats": [],
}
"""Of report.json, that may be null."""
SMALL = "model: {name: MODEL}\nrun: {name: mine, folder: runs}\ndata: {limit: 30}\n"


@pytest.fixture
def small(tmp_path: Path, tiny_models) -> Path:
    """Returns a folder with `small.yaml`, a recipe for a tiny model on some of the bundled data."""
    text = SMALL.replace("MODEL", str(tiny_models("gemma2")))
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_comes_without_the_heavy_libraries(arguments: list[str], tmp_path: Path) -> None:
    result = run_python("-c", HELP_WITH_MODULES, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout
    modules = set(result.stdout.rpartition("MODULES ")[2].split())
    assert {"lora_dpo", "typer"} <= modules
    assert modules & HEAVY == set()


def test_help_without_arguments_lists_every_verb(tmp_path: Path) -> None:
    result = lora_dpo(cwd=tmp_path)
    assert [verb for verb in VERBS if not re.search(rf"^\W+{verb}\s", result.stdout, re.MULTILINE)] == []
    assert {"quickstart", "data", "dpo", "plot", "schema"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_says_what_it_does_and_shows_an_example(verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]
    assert command.help
    heading, *examples = command.epilog.split("\n\n")
    assert heading == "Examples:"
    assert [example for example in examples if not re.match(rf"lora-dpo {verb}\b", example)] == []
    assert examples
    for parameter in command.params:
        assert parameter.help, parameter.name
    for recipe in re.findall(r"recipes/(\S+\.yaml)", command.epilog):
        assert (resources.folder("recipes") / recipe).is_file()


def test_examples_of_the_help_are_valid_recipes_and_overrides() -> None:
    for command in typer.main.get_command(app).commands.values():
        for example in re.findall(r"lora-dpo (?:dpo|data) (.+)", command.epilog):
            recipe, *overrides = [word for word in example.split() if not word.startswith("--")]
            assert load_recipe(recipe, overrides).run.name


def test_version(tmp_path: Path) -> None:
    assert lora_dpo("--version", cwd=tmp_path).stdout == f"lora-dpo {__version__}\n"


def test_schema_is_json_that_describes_the_recipe(tmp_path: Path) -> None:
    result = lora_dpo("schema", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    schema = json.loads(result.stdout)
    assert schema == Recipe.model_json_schema()
    assert schema["required"] == ["model", "run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dpoo"], ["No such command 'dpoo'", "Did you mean 'dpo'?"]),
        (["dpo", "quickstart", "--overwrit"], ["No such option: --overwrit", "--overwrite"]),
        (["dpo"], ["Missing argument 'RECIPE'"]),
        (["dpo", "quickstart", "--processes", "0"], ["Invalid value for '--processes'", "greater than or equal to 1"]),
        (["dpo", "quickstrat"], ["Error: There is no recipe quickstrat.", "Did you mean 'quickstart'?"]),
        (["dpo", "quickstart", "train.epoch=2"], ["Error: command line: train.epoch=2:", "'train.epochs'"]),
        (["quickstart", "train.epochs"], ["Error: 'train.epochs' is not section.key=value."]),
        (["data", "quickstart", "data.pairs=bset"], ["data.pairs: 'bset' is not one of", "Did you mean 'best'?"]),
        (["dpo", "quickstart", "train.strategy=zero3"], ["Error: train.strategy zero3 needs GPUs"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_typo_ends_with_code_2_and_leads_to_the_right_word(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    result = lora_dpo(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert result.stdout == ""
    message = " ".join(result.stderr.split())
    for word in words:
        assert word in message
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_plot_of_a_run_that_is_not_there_leads_to_the_nearest(tmp_path: Path) -> None:
    for name in ("first", "second"):
        recipe = Recipe.model_validate(
            {"model": {"name": "m"}, "run": {"name": name, "folder": str(tmp_path / "runs")}}
        )
        RunFolder.of(recipe).create(recipe, overwrite=False)
    for asked, found in (("runs/frist", "runs/first"), ("secnd", "runs/second")):
        result = lora_dpo("plot", asked, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith(f"Error: There is no run at {asked}.\n")
        assert f"Did you mean '{found}'?" in result.stderr
    result = lora_dpo("plot", "runs/first", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "Error: runs/first/metrics.jsonl has no logged steps, so there is nothing to draw.\n"


def test_plot_draws_from_the_metrics_alone(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"model": {"name": "m"}, "run": {"name": "first", "folder": str(tmp_path / "runs")}})
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False)
    entry = {"phase": "train", "loss": 0.7, "rewards/margins": 0.1, "rewards/accuracies": 0.5, "learning_rate": 1e-5}
    lines = [json.dumps({"step": step, **entry}) for step in (1, 2)]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 3, "pha', encoding="utf-8")  # killed while writing
    result = lora_dpo("plot", "runs/first", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = result.stdout.split()
    assert "runs/first/plots/training.png" in drawn
    for file in drawn:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_prints_the_command_and_writes_nothing(small: Path) -> None:
    before = sorted(small.rglob("*"))
    result = lora_dpo("dpo", "small.yaml", "train.epochs=2", "--dry-run", cwd=small, CUDA_VISIBLE_DEVICES="0,1")
    assert result.returncode == 0
    prompt, threads, *command = shlex.split(result.stderr)  # the checkout's path may hold a space
    assert (prompt, Path(command[0]).name, command[1]) == ("$", "accelerate", "launch")
    assert threads.startswith("OMP_NUM_THREADS=")
    assert command[command.index("--config_file") + 1].endswith("/accelerate_configs/ddp.yaml")
    assert result.stderr.endswith(
        " --num_processes 2 --main_process_port 0 -m lora_dpo.dpo small.yaml train.epochs=2\n"
    )
    assert sorted(small.rglob("*")) == before


def test_flags_reach_the_training(small: Path) -> None:
    result = lora_dpo("--debug", "dpo", "small.yaml", "--overwrite", "--dry-run", cwd=small, CUDA_VISIBLE_DEVICES="")
    assert result.stderr.endswith("-m lora_dpo.dpo small.yaml --overwrite --debug\n")
    after_the_verb = lora_dpo("dpo", "small.yaml", "--debug", "--dry-run", cwd=small, CUDA_VISIBLE_DEVICES="")
    assert after_the_verb.stderr.endswith("-m lora_dpo.dpo small.yaml --debug\n")


def test_a_typo_in_run_resume_is_found_before_anything_is_started(small: Path) -> None:
    recipe = load_recipe(str(small / "small.yaml"), [f"run.folder={small / 'runs'}", "run.name=first"])
    RunFolder.of(recipe).create(recipe, overwrite=False)
    result = lora_dpo("dpo", "small.yaml", "run.resume=runs/frist", cwd=small)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: run.resume is runs/frist, which is no folder.\n")
    assert "Did you mean 'runs/first'?" in result.stderr


def test_a_finished_run_is_shown_and_not_run_again(small: Path) -> None:
    folder = f"run.folder={small / 'runs'}"
    recipe = load_recipe(str(small / "small.yaml"), [folder])
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False)
    run.report_json.write_text(json.dumps(EMPTY), encoding="utf-8")
    run.report_md.touch()
    for words in (["lora_dpo", "dpo"], ["lora_dpo.dpo"]):
        result = run_python("-m", *words, "small.yaml", folder, cwd=small, CUDA_VISIBLE_DEVICES="")
        assert result.returncode == 0, result.stderr
        assert f"{run.path} is finished; this is its report. To run it again, add --overwrite." in result.stderr
        assert f"report    {run.report_md}" in result.stdout


def test_a_report_of_an_older_version_is_not_misread(small: Path) -> None:
    recipe = load_recipe(str(small / "small.yaml"), [f"run.folder={small / 'runs'}"])
    run = RunFolder.of(recipe)
    run.create(recipe, overwrite=False)
    run.report_json.write_text('{"schema_version": 1}', encoding="utf-8")
    result = lora_dpo("dpo", "small.yaml", f"run.folder={small / 'runs'}", cwd=small)
    assert result.returncode == 0, result.stderr
    assert f"It is an older version's; `lora-dpo eval {run.path}` writes it anew." in result.stderr


def test_a_run_that_is_being_written_is_left_alone(small: Path) -> None:
    folder = f"run.folder={small / 'runs'}"
    recipe = load_recipe(str(small / "small.yaml"), [folder])
    with RunFolder.of(recipe).create(recipe, overwrite=False):
        result = lora_dpo("dpo", "small.yaml", folder, cwd=small)
    assert result.returncode == 2
    assert result.stderr.startswith(f"Error: Another process is writing the run {RunFolder.of(recipe).path}.")


@pytest.mark.parametrize("complete", [False, True])
def test_quickstart_goes_on_with_its_own_unfinished_run_but_with_no_other(tmp_path: Path, complete: bool) -> None:
    """The strategy stops it where the training would be launched, past the check of the folder."""
    own = ["run.folder=runs", "train.strategy=zero3"]
    run = RunFolder(tmp_path / "runs" / "quickstart")
    run.create(load_recipe("quickstart", own), overwrite=False)
    if complete:
        run.report_json.write_text("{}", encoding="utf-8")
    before = run.recipe.read_bytes()
    refusal = "holds a finished run, which is never overwritten" if complete else "holds an unfinished run of another"
    cases = {
        ("train.epochs=9",): refusal,
        ("train.epochs=9", "--overwrite"): "train.strategy zero3 needs GPUs",
    }
    if not complete:
        cases[()] = "train.strategy zero3 needs GPUs"
    for extra, words in cases.items():
        result = lora_dpo("quickstart", *own, *extra, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
        assert result.returncode == 2
        assert words in result.stderr
    assert run.recipe.read_bytes() == before


@pytest.mark.slow
def test_run_that_is_finished_shows_its_report_again(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["run.folder=runs"])
    run = RunFolder(tmp_path / "runs" / "quickstart")
    run.create(recipe, overwrite=False)
    found = {"before": 0.5, "after": 0.75, "difference": 0.25, "ci95": [0.1, 0.4], "p": 0.002, "n": 7}
    report = {**EMPTY, "verdict": "Better: so it is.", "preference": {"n_pairs": 12, "n_groups": 7, "accuracy": found}}
    run.report_json.write_text(json.dumps(report), encoding="utf-8")
    result = lora_dpo("dpo", "quickstart", "run.folder=runs", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert "runs/quickstart is finished; this is its report." in result.stderr
    assert "Better: so it is." in result.stdout
    assert "held out: 12 pairs of 7 questions" in result.stdout
    assert "+25.0" in result.stdout
    assert run.load_recipe() == recipe


@pytest.mark.slow
def test_data_as_json_has_stable_keys_and_nothing_else_on_stdout(small: Path) -> None:
    result = lora_dpo("data", "small.yaml", "--json", cwd=small)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    promised = {"pairs", "groups", "splits", "dropped", "overlap"}
    assert set(summary) == promised | {"questions", "truncated", "near_duplicates"}
    assert set(summary["splits"]) == {"train", "validation", "test"}
    for split in summary["splits"].values():
        assert set(split) == {"pairs", "groups", "hash"}
        assert re.fullmatch(r"[0-9a-f]{64}", split["hash"])
    assert {name: split["pairs"] for name, split in summary["splits"].items()} == {
        "train": 21,
        "validation": 3,
        "test": 6,
    }
    assert (summary["pairs"], summary["groups"], summary["overlap"]) == (30, 30, 0)
    assert summary["questions"] == {"train": 21, "validation": 3, "test": 6}
    assert summary["dropped"] == {"limit": 138}
    assert [file.name for file in small.iterdir()] == ["small.yaml"]


@pytest.mark.slow
def test_data_shows_counts_and_one_example_as_the_model_reads_it(small: Path) -> None:
    result = lora_dpo("data", "small.yaml", cwd=small)
    assert result.returncode == 0, result.stderr
    assert re.search(r"train\s*│\s*21 │\s*21 │", result.stdout)
    assert "Dropped: 138 limit." in result.stdout
    assert "<start_of_turn>model" in result.stdout
    assert "<end_of_turn>·" in result.stdout
    assert "\x1b[" not in result.stdout


def test_this_python_is_the_one_that_is_tested() -> None:
    assert Path(sys.modules["lora_dpo"].__file__).parent == Path(__file__).parent.parent / "lora_dpo"
