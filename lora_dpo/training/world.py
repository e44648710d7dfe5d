"""What was asked of the launcher against what is there: compared on every rank before anything is written.

Several launch modes silently do something else than they were asked for: one process instead of two, DDP instead of
FSDP, two trainings that write to one folder. Each would train, and train something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, str_to_bool
from rich.table import Table
from transformers import TrainingArguments

from lora_dpo.errors import UserError
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.batch import BatchPlan
from lora_dpo.recipe.schema import CANNOT_DIVIDE_4_BIT, Recipe
from lora_dpo.recipe.stages import UNITS

_WITHOUT_WEIGHTS_DIVIDED = {"ddp", "zero2"}
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True)
class World:
    """What runs, as one rank sees it.

    Attributes:
        processes: Processes that know of each other.
        rank: This one's number.
        strategy: `single`, `ddp`, `zero1` to `zero3` (`zero3_offload`), `fsdp1` or `fsdp2`.
        precision: Mixed precision: `no`, `bf16` or `fp16`.
        device: Kind of device, and the library that the processes talk through.
    """

    processes: int
    rank: int
    strategy: str
    precision: str
    device: str


def check_world(
    recipe: Recipe, plan: BatchPlan, arguments: TrainingArguments, environment: Mapping[str, str] = os.environ
) -> World:
    """Compares what launcher and recipe ask for with what is there. Every rank must call it.

    Args:
        recipe: The recipe.
        plan: How steps are cut, for the number of processes that the launcher named.
        arguments: TRL's arguments; making them has started the process group.
        environment: What the launcher left for this process.

    Returns:
        What runs.

    Raises:
        UserError: Something else runs than was asked for, on this rank or on another.
    """
    world = _running(arguments, environment)
    problem = next(_problems(recipe, plan, arguments, world, environment), None)
    if torch.distributed.is_initialized():
        elsewhere = _elsewhere(problem, recipe)  # on a rank with a problem of its own too: the others wait for it
        problem = problem or elsewhere
    if problem is not None:
        raise problem
    return world


def confirm_world(world: World, accelerator: Accelerator) -> None:
    """Compares what was found before the training with what Accelerate made of it.

    Raises:
        RuntimeError: They differ; a release of Accelerate reads the launcher's environment in a new way.
    """
    state = accelerator.state
    fsdp = state.fsdp_plugin if state.distributed_type == DistributedType.FSDP else None
    made = _strategy(
        state.distributed_type,
        state.deepspeed_plugin if state.distributed_type == DistributedType.DEEPSPEED else None,
        fsdp.fsdp_version if fsdp else None,
    )
    found = (world.processes, world.strategy, world.precision)
    if found != (state.num_processes, made, state.mixed_precision):
        raise RuntimeError(
            f"{world.processes} x {world.strategy} in precision {world.precision} was found before the training, but "
            f"Accelerate made {state.num_processes} x {made} in precision {state.mixed_precision} of it."
        )


def world_table(recipe: Recipe, plan: BatchPlan, world: World, environment: Mapping[str, str] = os.environ) -> Table:
    """Returns what was asked beside what runs, for rank 0 to print once."""
    here = int(environment.get("LOCAL_WORLD_SIZE", world.processes))
    unit = UNITS[recipe.run.stage]
    each = f"{plan.micro_batch} {unit}" if plan.tokens is None else f"about {plan.tokens} distinct tokens"
    table = Table("", "asked", "runs", title="What runs", title_justify="left", title_style="")
    table.add_row("processes", str(plan.world_size), f"{world.processes}: {world.processes // here} x {here} a node")
    table.add_row("device", "", world.device)
    table.add_row("strategy", recipe.train.strategy, world.strategy)
    table.add_row("mixed precision", f"model.dtype {recipe.model.dtype}", world.precision)
    table.add_row(
        "a step", f"{plan.global_batch} {unit}", f"{plan.world_size} x {plan.accumulation} micro-batches of {each}"
    )
    return table


def _running(arguments: TrainingArguments, environment: Mapping[str, str]) -> World:
    """Reads the state of Accelerate before its `Accelerator` exists, and foretells what that will make of it.

    Without GPUs it takes up DeepSpeed only later and FSDP never; see `AcceleratorState.__init__`.
    """
    state = PartialState()
    forced_to_cpu = _flag(environment, "ACCELERATE_USE_CPU")
    on_devices = state.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU)
    divided_by_fsdp = on_devices and _flag(environment, "ACCELERATE_USE_FSDP")
    strategy = _strategy(
        state.distributed_type,
        None if forced_to_cpu else arguments.deepspeed_plugin,
        int(environment.get("FSDP_VERSION", "1")) if divided_by_fsdp else None,
    )
    device = f"{state.device.type}, {torch.distributed.get_backend()}" if _group_size() > 1 else state.device.type
    return World(state.num_processes, state.process_index, strategy, arguments.mixed_precision, device)


def _strategy(kind: DistributedType, deepspeed: DeepSpeedPlugin | None, fsdp_version: int | None) -> str:
    if deepspeed is not None:
        zero = deepspeed.hf_ds_config.config.get("zero_optimization", {})
        devices = (zero.get(part, {}).get("device", "none") for part in ("offload_param", "offload_optimizer"))
        return f"zero{deepspeed.zero_stage}" + ("" if set(devices) == {"none"} else "_offload")
    if fsdp_version is not None:
        return f"fsdp{fsdp_version}"
    return "single" if kind == DistributedType.NO else "ddp"


def _problems(
    recipe: Recipe, plan: BatchPlan, arguments: TrainingArguments, world: World, environment: Mapping[str, str]
) -> Iterator[UserError]:
    yield from _wrong_processes(recipe, world, environment)
    yield from _wrong_strategy(recipe, world, environment)
    asked = _PRECISION[choose_dtype(recipe.model.dtype)]
    if world.precision != asked:
        yield UserError(
            f"model.dtype {recipe.model.dtype} means mixed precision '{asked}', but '{world.precision}' would run.",
            why=f"The launcher set ACCELERATE_MIXED_PRECISION={environment.get('ACCELERATE_MIXED_PRECISION')}.",
            fix="Leave mixed_precision out of the launcher's configuration, and set model.dtype.",
        )
    yield from _wrong_batch(plan, arguments)


def _wrong_processes(recipe: Recipe, world: World, environment: Mapping[str, str]) -> Iterator[UserError]:
    one_is_meant = recipe.train.strategy == "single"
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment and not one_is_meant:
        yield UserError(
            "The launcher was asked for several processes, but started this one alone.",
            why="It set MASTER_ADDR, but no WORLD_SIZE: `distributed_type: MULTI_CPU` and `--cpu` do that.",
            fix="Without GPUs take accelerate_configs/cpu_ddp.yaml; for one process set train.strategy=single.",
        )
    tasks = {name: int(environment[name]) for name in _TASKS if environment.get(name, "").isdigit()}
    most = max(tasks, key=lambda name: tasks[name], default=None)
    if most is not None and tasks[most] > world.processes and not one_is_meant:
        yield UserError(
            f"{tasks[most]} tasks were started ({most}), but only {world.processes} train together.",
            why="Each would be a training of its own, and all would write to one folder.",
            fix="Start one task a node, and in it `accelerate launch`: launch/multi_node.sh shows how.",
        )
    asked = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    group = _group_size(), torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    if not asked == group == (world.processes, world.rank):
        yield UserError(
            f"The launcher started process {asked[1]} of {asked[0]}, torch.distributed is process {group[1]} of "
            f"{group[0]}, and the training would be process {world.rank} of {world.processes}.",
            why="Processes that do not know of each other train on the same data and write to one folder.",
            fix="Without GPUs, leave train.trl.use_cpu alone; otherwise use a file of accelerate_configs/ unchanged.",
        )


def _wrong_strategy(recipe: Recipe, world: World, environment: Mapping[str, str]) -> Iterator[UserError]:
    asked, runs = recipe.train.strategy, world.strategy
    if _flag(environment, "ACCELERATE_USE_FSDP") and not runs.startswith("fsdp"):
        yield UserError(
            f"The launcher was asked for FSDP, but {runs} would run.",
            why="Without GPUs Accelerate runs DDP in its place, and says nothing.",
            fix="Use GPUs, or another file of accelerate_configs/.",
        )
    if _flag(environment, "ACCELERATE_USE_DEEPSPEED") and not runs.startswith("zero"):
        yield UserError(
            f"The launcher was asked for DeepSpeed, but {runs} would run.",
            why="ACCELERATE_USE_CPU is set, which makes Accelerate leave DeepSpeed out and say nothing.",
            fix="Unset ACCELERATE_USE_CPU.",
        )
    fits = runs in _WITHOUT_WEIGHTS_DIVIDED if asked == "qlora" else asked in ("auto", runs)
    if not fits:
        yield UserError(
            f"train.strategy is {asked}, but the launcher's configuration makes it {runs}.",
            fix=f"Start it with accelerate_configs/{asked}.yaml, or take train.strategy=auto, which accepts the "
            "launcher's.",
        )
    if recipe.adapter.method == "qlora" and runs in CANNOT_DIVIDE_4_BIT:
        yield UserError(
            f"adapter.method qlora cannot run under {runs}, {CANNOT_DIVIDE_4_BIT[runs]}.",
            fix="Start it with accelerate_configs/qlora.yaml.",
        )


def _wrong_batch(plan: BatchPlan, arguments: TrainingArguments) -> Iterator[UserError]:
    planned = {
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": plan.micro_batch * plan.accumulation * plan.world_size,
    }
    config = arguments.deepspeed_plugin.hf_ds_config.config if arguments.deepspeed_plugin is not None else {}
    for name, number in planned.items():
        if config.get(name, "auto") not in ("auto", number):
            yield UserError(
                f"DeepSpeed's configuration says {name} {config[name]}, but the recipe makes it {number}.",
                why="DeepSpeed would divide the gradients by its own number.",
                fix=f'Write "{name}": "auto" into the JSON file.',
            )


def _elsewhere(problem: UserError | None, recipe: Recipe) -> UserError | None:
    """Returns what is wrong on another rank, so that all of them stop together and none waits for the others."""
    known: list[Any] = [None] * _group_size()
    torch.distributed.all_gather_object(known, (None if problem is None else str(problem), recipe.model_dump()))
    for rank, (text, other) in enumerate(known):
        if text is not None:
            return UserError(f"Rank {rank} cannot go on: {text}")
        if differing := _differing(known[0][1], other):
            return UserError(
                f"Rank {rank} was given another recipe than rank 0: {', '.join(differing)}.",
                why="All of them train one model, so they must agree.",
                fix="Start every node with the same recipe and the same overrides.",
            )
    return None


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [f"{section}.{key}" for section, keys in one.items() for key in keys if keys[key] != other[section].get(key)]


def _group_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _flag(environment: Mapping[str, str], name: str) -> bool:
    return bool(str_to_bool(environment.get(name, "false")))
