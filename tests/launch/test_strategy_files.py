"""Every strategy has its files, its script and its line in the documentation, and they agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from lora_dpo.recipe.schema import Strategy
from tests.conftest import REPOSITORY
from tests.process import PATIENCE, run_python

CONFIGS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))
SCRIPTS = sorted([*(REPOSITORY / "launch").glob("dpo_*.sh"), REPOSITORY / "launch" / "multi_node.sh"])
SCRIPTS_BY_NAME = {path.stem: path for path in SCRIPTS}
STRATEGIES = [name for name in get_args(Strategy) if name != "auto"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_loads_it_and_no_process_count_is_in_it(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = load_config_from_file(str(path))
    assert ("num_processes" in values) == (path.stem == "single")
    assert config.use_cpu == path.stem.startswith("cpu_")
    assert config.mixed_precision is None  # the recipe says it
    if config.distributed_type == "DEEPSPEED":
        assert config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"
        name = f"{path.stem.removeprefix('cpu_')}.json"
        assert config.deepspeed_config["deepspeed_config_file"] == f"ds_configs/{name}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_what_the_recipe_says_is_filled_in_by_transformers(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    zero = config["zero_optimization"]
    assert zero["stage"] == int(path.stem[4])
    # Below it each of the adapter's matrices would be gathered by itself.
    assert zero["stage"] != 3 or zero["stage3_param_persistence_threshold"] >= 300_000


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_has_a_file_a_script_and_a_line(strategy: str) -> None:
    assert (REPOSITORY / "accelerate_configs" / f"{strategy}.yaml") in CONFIGS
    assert f"start_dpo {strategy} " in (REPOSITORY / "launch" / f"dpo_{strategy}.sh").read_text(encoding="utf-8")
    assert f"| `{strategy}` |" in (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_cpu_twin_has_an_original() -> None:
    twins = {path.stem.removeprefix("cpu_") for path in CONFIGS if path.stem.startswith("cpu_")}
    assert twins == set(STRATEGIES) - {"single", "fsdp2"}


def call(script: Path, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls a script with an `accelerate` and a `torchrun` that only print what they were given."""
    for name in ("accelerate", "torchrun"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    # A copy, since the scripts put the checkout's own .venv first.
    copy = folder / "checkout"
    for name in ("launch", "accelerate_configs", "ds_configs"):
        if not (copy / name).exists():
            copy.mkdir(exist_ok=True)
            (copy / name).symlink_to(REPOSITORY / name)
    given = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), **environment}
    command = ["bash", str(copy / "launch" / script.name), *words]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_and_no_words_at_all(script: Path, tmp_path: Path) -> None:
    assert os.access(script, os.X_OK)
    shown, none = call(script, "--help", folder=tmp_path), call(script, folder=tmp_path)
    assert (shown.returncode, none.returncode) == (0, 2)
    assert f"launch/{script.name}" in shown.stdout == none.stdout


def test_the_line_on_gpus(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    done = call(SCRIPTS_BY_NAME["dpo_zero3"], "a.yaml", "x.y=1", folder=tmp_path, CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert done.stdout.replace(f"{REPOSITORY}/", "").replace(f"{folder}/", "") == (
        "accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 4 --deepspeed_config_file "
        "ds_configs/zero3.json --main_process_port 0 -m lora_dpo.dpo a.yaml x.y=1 train.strategy=zero3\n"
    )


def test_the_line_on_a_cpu(tmp_path: Path) -> None:
    done = call(SCRIPTS_BY_NAME["dpo_qlora"], "a.yaml", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.stdout.endswith(
        "accelerate_configs/cpu_qlora.yaml --num_processes 2 --main_process_port 0 -m lora_dpo.dpo a.yaml "
        "train.strategy=qlora adapter.method=qlora\n"
    )
    done = call(SCRIPTS_BY_NAME["dpo_fsdp2"], "a.yaml", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cpu_fsdp2.yaml: the strategy is misspelt, or needs GPUs" in done.stderr


def test_the_line_on_a_node_of_a_slurm_job(tmp_path: Path) -> None:
    job = {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_ID": "123456", "MAIN_PROCESS_IP": "node-a"}
    done = call(SCRIPTS_BY_NAME["multi_node"], "ddp", "a.yaml", folder=tmp_path, CUDA_VISIBLE_DEVICES="0,1", **job)
    assert done.stdout.endswith(
        "accelerate_configs/ddp.yaml --num_processes 8 --num_machines 4 --machine_rank 2 --main_process_ip node-a "
        "--main_process_port 23456 -m lora_dpo.dpo a.yaml train.strategy=ddp\n"
    )
    none = call(SCRIPTS_BY_NAME["multi_node"], "ddp", "a.yaml", folder=tmp_path, CUDA_VISIBLE_DEVICES="", **job)
    assert none.returncode == 2
    assert "Set PROCESSES_PER_NODE" in none.stderr


def test_the_line_of_an_sft_stage(tmp_path: Path) -> None:
    done = call(SCRIPTS_BY_NAME["dpo_ddp"], "a.yaml", folder=tmp_path, CUDA_VISIBLE_DEVICES="0,1", STAGE="sft")
    assert done.stdout.endswith("--num_processes 2 --main_process_port 0 -m lora_dpo.sft a.yaml train.strategy=ddp\n")
    node = {"PROCESSES_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "", "STAGE": "sft"}
    done = call(SCRIPTS_BY_NAME["multi_node"], "zero2", "a.yaml", folder=tmp_path, **node)
    assert "-m lora_dpo.sft a.yaml train.strategy=zero2 sft.trl.deepspeed=" in done.stdout


@pytest.mark.slow
def test_two_nodes_on_this_machine_s_cpu(tiny_models, tmp_path: Path) -> None:
    """Two calls of the script, as srun makes them, train one model together."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"{n}.", "rejected": "No."} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = f"model: {{name: '{tiny_models('gpt2')}'}}\ndata: {{path: pairs.jsonl}}\nrun: {{name: small}}\n"
    (tmp_path / "recipe.yaml").write_text(f"{recipe}train: {{max_steps: 2}}\nevaluation: {{samples: 0}}\n")
    start = (
        "import os, subprocess, sys; "
        "calls = [subprocess.Popen(sys.argv[1:], env={**os.environ, 'MACHINE_RANK': str(n)}) for n in (0, 1)]; "
        "sys.exit(max(call.wait() for call in calls))"
    )
    node = {"NUM_MACHINES": "2", "MAIN_PROCESS_IP": "127.0.0.1", "MAIN_PROCESS_PORT": "29617"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run_python(
        "-c", start, str(SCRIPTS_BY_NAME["multi_node"]), "ddp", "recipe.yaml", cwd=tmp_path, PROCESSES_PER_NODE="1",
        CUDA_VISIBLE_DEVICES="", PATH=path, **node,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    provenance = json.loads((tmp_path / "runs" / "small" / "provenance.json").read_text())
    assert (provenance["world_size"], provenance["distributed_type"]) == (2, "MULTI_CPU")
