"""What runs is what was asked for: modes that silently do something else are stopped before a file is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from lora_dpo.console import out
from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import Recipe
from lora_dpo.training.arguments import training_arguments
from lora_dpo.training.world import check_world, confirm_world, world_table
from tests.conftest import REPOSITORY
from tests.machine import needs_deepspeed
from tests.process import run_python
from tests.small import small_recipe

PLAN = BatchPlan(global_batch=4, micro_batch=2, accumulation=2, world_size=1)


def check(environment: dict[str, str], tmp_path: Path, dtype: str = "auto", **sections) -> tuple:
    values = small_recipe("a/model", tmp_path, **sections).model_dump()
    recipe = Recipe.model_validate({**values, "model": {"name": "a/model", "dtype": dtype}})
    arguments = training_arguments(recipe, PLAN, 8, 0, tmp_path / "checkpoints")
    return check_world(recipe, PLAN, arguments, environment), recipe, arguments


def test_one_process_is_what_one_process_asks_for(tmp_path: Path) -> None:
    world, recipe, arguments = check({}, tmp_path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert (world.processes, world.rank, world.strategy, world.precision) == (1, 0, "single", "no")
    assert world.device == device
    confirm_world(world, Accelerator(cpu=arguments.use_cpu))
    with out.capture() as capture:
        out.print(world_table(recipe, PLAN, world, {}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    assert [row[0] for row in rows if row[0]] == ["processes", "device", "strategy", "mixed precision", "a step"]
    assert ["strategy", "single", "single"] in rows


AUTO = {"train": {"strategy": "auto"}}
ALONE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "sections", "message"),
    [
        (ALONE, AUTO, "asked for several processes, but started this one alone"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, AUTO, r"4 tasks were started \(SLURM_STEP_NUM_TASKS\), but only 1 train"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, AUTO, r"2 tasks were started \(OMPI_COMM_WORLD_SIZE\)"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, {}, r"started process 1 of 2, torch.distributed is process 0 of 1"),
        ({"ACCELERATE_USE_FSDP": "true"}, AUTO, "asked for FSDP, but single would run"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, AUTO, "asked for DeepSpeed, but single would run"),
        ({}, {"train": {"strategy": "zero3"}}, "train.strategy is zero3, but the launcher's configuration makes it"),
        ({}, {"train": {"strategy": "fsdp2"}}, "Start it with accelerate_configs/fsdp2.yaml"),
    ],
)
def test_a_mismatch_stops(environment: dict[str, str], sections: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        check(environment, tmp_path, **sections)


@pytest.mark.parametrize("environment", [ALONE, {"SLURM_STEP_NUM_TASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_that_was_asked_for_by_name_is_let_through(environment: dict[str, str], tmp_path: Path) -> None:
    assert check(environment, tmp_path)[0].strategy == "single"


def test_a_precision_of_the_launcher_s_own_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers takes it over, so that a recipe in float32 would train in bfloat16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    environment = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    with pytest.raises(UserError, match="model.dtype float32 means mixed precision 'no', but 'bf16' would run"):
        check(environment, tmp_path, dtype="float32")
    assert check(environment, tmp_path, dtype="bfloat16")[0].precision == "bf16"


@needs_deepspeed
@pytest.mark.slow
def test_a_batch_of_deepspeed_s_own_stops(tmp_path: Path) -> None:
    config = json.loads((REPOSITORY / "ds_configs" / "zero2.json").read_text())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**config, "gradient_accumulation_steps": 8}))
    given = [str(REPOSITORY / "tests" / "training" / "check_deepspeed.py"), str(file), str(tmp_path)]
    found = run_python("-m", "torch.distributed.run", "--standalone", *given, cwd=tmp_path)
    assert "gradient_accumulation_steps 8, but the recipe makes it 2" in found.stdout, found.stderr[-2000:]


def test_what_accelerate_made_is_confirmed(tmp_path: Path) -> None:
    world, _, arguments = check({}, tmp_path)
    found = type(world)(2, 0, "ddp", "no", "cpu")
    with pytest.raises(RuntimeError, match=r"2 x ddp .* was found .* but Accelerate made 1 x single"):
        confirm_world(found, Accelerator(cpu=arguments.use_cpu))


def launch_config(folder: Path, kind: str, more: str = "") -> str:
    file = folder / "launch.yaml"
    file.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nuse_cpu: true\n{more}")
    return str(file)


def started(folder: Path, model: Path, *launcher: str, overrides: tuple[str, ...] = (), **environment: str):
    """Starts the real training; every one of these must stop before it writes anything."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"{n}.", "rejected": "No."} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        f"model: {{name: '{model}'}}\ndata: {{path: pairs.jsonl}}\ntrain: {{max_steps: 2}}\nrun: {{name: small}}\n"
    )
    words = [*launcher, "-m", "lora_dpo.dpo", "recipe.yaml", *overrides]
    done = run_python("-m", *words, cwd=folder, CUDA_VISIBLE_DEVICES="", **environment)
    assert done.returncode != 0
    assert not (folder / "runs").exists()
    return done.stderr


ACCELERATE = ("accelerate.commands.launch", "--quiet", "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MULTI_CPU", "--cpu"])
def test_two_processes_of_which_one_starts(kind: str, tiny_models, tmp_path: Path) -> None:
    flags = ("--cpu",) if kind == "--cpu" else ("--config_file", launch_config(tmp_path, kind))
    errors = started(tmp_path, tiny_models("gpt2"), *ACCELERATE, *flags)
    assert "Error: The launcher was asked for several processes, but started this one alone." in errors


@pytest.mark.slow
def test_two_processes_that_do_not_know_of_each_other(tiny_models, tmp_path: Path) -> None:
    config = str(REPOSITORY / "accelerate_configs" / "cpu_ddp.yaml")
    overrides = ("train.trl.use_cpu=false",)
    errors = started(tmp_path, tiny_models("gpt2"), *ACCELERATE, "--config_file", config, overrides=overrides)
    assert "torch.distributed is process 1 of 2, and the training would be process 0 of 1" in errors


@pytest.mark.slow
def test_fsdp_that_becomes_ddp(tiny_models, tmp_path: Path) -> None:
    config = launch_config(tmp_path, "FSDP", "fsdp_config: {fsdp_version: 2}\n")
    errors = started(tmp_path, tiny_models("gpt2"), *ACCELERATE, "--config_file", config)
    assert "Error: The launcher was asked for FSDP, but ddp would run." in errors


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        (("train.strategy=zero3",), {}, "train.strategy is zero3, but the launcher's configuration makes it zero2."),
        ((), {"ACCELERATE_USE_CPU": "true"}, "The launcher was asked for DeepSpeed, but ddp would run."),
    ],
)
def test_deepspeed_that_is_another_or_none(
    overrides: tuple[str, ...], environment: dict[str, str], message: str, tiny_models, tmp_path: Path
) -> None:
    files = ("--config_file", str(REPOSITORY / "accelerate_configs" / "cpu_zero2.yaml"))
    files += ("--deepspeed_config_file", str(REPOSITORY / "ds_configs" / "zero2.json"))
    launcher = (*ACCELERATE, *files)
    errors = started(tmp_path, tiny_models("gpt2"), *launcher, overrides=overrides, **environment)
    assert f"Error: {message}" in errors


@pytest.mark.slow
def test_ranks_with_different_recipes(tiny_models, tmp_path: Path) -> None:
    own_rate = f'exec "{sys.executable}" "$@" train.learning_rate=1e-$((4 + RANK))'
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python", "bash", "-c", own_rate)
    errors = started(tmp_path, tiny_models("gpt2"), *launcher, "rank")
    for rank in ("", "[rank 1] "):
        assert f"{rank}Error: Rank 1 was given another recipe than rank 0: train.learning_rate." in errors
