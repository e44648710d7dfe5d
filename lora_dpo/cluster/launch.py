"""From a recipe to the `accelerate launch` line that trains it; from a number of processes to one that evaluates."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_dpo import resources
from lora_dpo.cluster.hardware import cpu_count, gpu_count
from lora_dpo.cluster.nodes import Nodes
from lora_dpo.errors import UserError
from lora_dpo.recipe.batch import plan_batches, token_budget
from lora_dpo.recipe.schema import Recipe

DEEPSPEED = {"zero2", "zero3", "zero3_offload"}
"""Strategies that need the package deepspeed."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a training or an evaluation is started.

    Attributes:
        strategy: The strategy.
        processes: Processes on this machine.
        command: The words to run.
        environment: Variables that are set besides the user's own.
        what: What the command does, in a word.
        stops_in_order: Whether it looks for a stop file; what does not keeps what it has as it goes.
    """

    strategy: str
    processes: int
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    what: str = "training"
    stops_in_order: bool = True

    @property
    def line(self) -> str:
        """Returns what a user would type into a shell."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), shlex.join(self.command)])


def plan_launch(
    recipe: Recipe, arguments: Sequence[str], *, processes: int | None = None, nodes: Nodes | None = None
) -> Launch:
    """Picks strategy and number of processes, and writes the command.

    Args:
        recipe: The recipe.
        arguments: What the module of the recipe's stage is given: recipe path, overrides, flags.
        processes: Number of processes on this node; None is one a GPU, and one where there is none.
        nodes: The nodes of a cluster's job, of which this is one; None is this machine alone.

    Raises:
        UserError: The strategy needs GPUs that are not there, or the global batch cannot be shared.
    """
    gpus = gpu_count()
    machines = nodes.count if nodes is not None else 1
    strategy = recipe.train.strategy
    if strategy == "auto":
        devices = processes or gpus if gpus == 0 or processes is None else min(gpus, processes)
        strategy = fitting_strategy(recipe, max(devices, 1) * machines)
    count = processes or (1 if strategy == "single" else max(gpus, 1) if machines > 1 else gpus)
    world = count * machines
    if world > 1 and recipe.train.strategy == "single":
        asked = f"--processes is {count}" if machines == 1 else f"the job has {machines} nodes"
        raise UserError(
            f"train.strategy single is one process, but {asked}.",
            fix=f"{'Leave --processes out' if machines == 1 else 'Take one node'}, or train with train.strategy=auto.",
        )
    if gpus == 0 and strategy != "single":
        _check_runs_without_gpus(strategy, world)
    else:
        _check_gpus_suffice(count, gpus)
    if strategy in DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"train.strategy {strategy} needs the package deepspeed.", fix="Run: pip install deepspeed")
    if token_budget(recipe) is None:
        plan_batches(recipe.train.global_batch_size, recipe.train.micro_batch_size, world)
    module, environment = [f"lora_dpo.{recipe.run.stage}", *arguments], _threads(count)
    if machines > 1 and gpus == 0:
        command = _torchrun(count, module, nodes)
        environment |= _deepspeed_environment(strategy)
    else:
        command = _command(strategy, world, module, on_cpu=gpus == 0, nodes=nodes)
    return Launch(strategy, world, command, environment)


def plan_evaluation(arguments: Sequence[str], *, processes: int) -> Launch:
    """Writes the command for an evaluation whose work several processes share; each holds the whole model.

    Args:
        arguments: What `lora_dpo.eval` is given.
        processes: Number of processes, two at least.

    Raises:
        UserError: There are GPUs, but not as many.
    """
    gpus = gpu_count()
    if gpus > 0:
        _check_gpus_suffice(processes, gpus)
    command = _command("ddp", processes, ["lora_dpo.eval", *arguments], on_cpu=gpus == 0)
    return Launch("ddp", processes, command, _threads(processes), what="evaluation", stops_in_order=False)


def _check_gpus_suffice(processes: int, gpus: int) -> None:
    if processes > max(gpus, 1):
        raise UserError(
            f"{processes} processes need {processes} GPUs; there are {gpus} on this machine.",
            fix=f"Take --processes {max(gpus, 1)}, or leave it out.",
        )


def _threads(processes: int) -> dict[str, str]:
    # Accelerate's default is one thread a process, which leaves the other cores idle; its own flag for it does nothing
    # where there are several processes.
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cpu_count() // processes))}


def _check_runs_without_gpus(strategy: str, processes: int) -> None:
    one = "train here on one process with train.strategy=single"
    if not _config(strategy, on_cpu=True).is_file():
        raise UserError(
            f"train.strategy {strategy} needs GPUs, and there is none on this machine.",
            why="Without GPUs Accelerate would run plain DDP instead, and say nothing." if strategy == "fsdp2" else "",
            fix=f"Submit it to a node with GPUs, or {one}.",
        )
    if processes <= 1:
        raise UserError(
            f"train.strategy {strategy} needs GPUs, and there is none on this machine.",
            fix=f"Submit it to a node with GPUs, or {one}; --processes 2 tries the strategy on the CPU.",
        )


def fitting_strategy(recipe: Recipe, devices: int) -> str:
    """Returns what `train.strategy: auto` is on so many GPUs, or processes without."""
    if devices <= 1:
        return "single"
    return {"lora": "ddp", "qlora": "qlora", "full": "zero2"}[recipe.adapter.method]


def _config(strategy: str, *, on_cpu: bool) -> Path:
    """Returns the strategy's file for accelerate; without GPUs its `cpu_` twin, which fsdp2 does not have."""
    name = f"cpu_{strategy}" if on_cpu and strategy != "single" else strategy
    return resources.folder("accelerate_configs") / f"{name}.yaml"


def _command(
    strategy: str, processes: int, module: Sequence[str], *, on_cpu: bool, nodes: Nodes | None = None
) -> list[str]:
    command = [_program("accelerate"), "launch", "--quiet"]
    command += ["--config_file", _short(_config(strategy, on_cpu=on_cpu))]
    if strategy != "single":
        port = nodes.port if nodes is not None else 0  # any free one: others may train on this machine
        command += ["--num_processes", str(processes), "--main_process_port", str(port)]
    if nodes is not None and nodes.count > 1:
        command += ["--num_machines", str(nodes.count), "--machine_rank", str(nodes.rank)]
        command += ["--main_process_ip", nodes.head]
    if strategy in DEEPSPEED:  # the file's own path is relative to the checkout
        command += ["--deepspeed_config_file", _short(_deepspeed_file(strategy))]
    return [*command, "-m", *module]


def _torchrun(processes: int, module: Sequence[str], nodes: Nodes) -> list[str]:
    """Returns the command for CPUs of several nodes, where `accelerate launch` forms no group, and says nothing."""
    command = [_program("torchrun"), "--nnodes", str(nodes.count), "--node_rank", str(nodes.rank)]
    command += ["--nproc_per_node", str(processes), "--master_addr", nodes.head, "--master_port", str(nodes.port)]
    return [*command, "-m", *module]


def _deepspeed_environment(strategy: str) -> dict[str, str]:
    """Returns what `accelerate launch` sets; as a word of the recipe the file would make it another recipe."""
    if strategy not in DEEPSPEED:
        return {}
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(_deepspeed_file(strategy)),
        "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file",
    }


def _deepspeed_file(strategy: str) -> Path:
    return resources.folder("ds_configs") / f"{strategy}.json"


def _program(name: str) -> str:
    """Returns a program of this Python's environment."""
    return _short(shutil.which(name, path=str(Path(sys.executable).parent)) or name)


def _short(path: str | Path) -> str:
    """Returns the path as a user below the working directory would type it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
