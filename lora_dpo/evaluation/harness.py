"""Tasks of lm-evaluation-harness, before and after, through the harness itself (the package lm-eval).

https://github.com/EleutherAI/lm-evaluation-harness. Prompts, tokenisation, metrics and standard errors are the
harness's; a task's questions are put without a chat template, which is its default.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from accelerate.utils.memory import should_reduce_batch_size

from lora_dpo.console import err, is_main_process
from lora_dpo.errors import UserError, nearest
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.hub_errors import offline_unless_reachable

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

_SAID_OF_A_LOADED_MODEL = ("`pretrained` model kwarg is not", "Passed an already-initialized model")


class TaskResult(TypedDict):
    """One number of one task, or of a group of tasks; None stands for what is no number, as an error of a group is."""

    task: str
    version: str
    metric: str
    filter: str
    higher_is_better: bool | None
    n: int
    shots: int
    before: float | None
    after: float | None
    stderr_before: float | None
    stderr_after: float | None


class Harness(TypedDict):
    """What the harness found."""

    package: str
    chat_template: bool
    limit: int | None
    tasks: list[TaskResult]


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks that are ready to run.

    Attributes:
        manager: What knows the tasks.
        built: By the name that was asked for, the task, or the group or the tasks that it stands for.
        limit: Documents of each task at most; None is all.
    """

    manager: TaskManager
    built: dict[str, list[Task | Group]]
    limit: int | None

    def key(self, name: str) -> str:
        """Returns what the numbers of a task depend on, besides the model: its definition and its documents."""
        content = [[task.dump_config(), list(islice(task.eval_docs, self.limit))] for task in self._leaves(name)]
        return name_of(_package(), name, self.limit, json.dumps(content, sort_keys=True, default=str))

    def fewest(self, name: str) -> int:
        """Returns the number of documents of the smallest task that a name stands for."""
        return min(len(list(islice(task.eval_docs, self.limit))) for task in self._leaves(name))

    def _leaves(self, name: str) -> list[Task]:
        return [task for each in self.built[name] for task in (each.get_all_tasks() if _is_group(each) else [each])]


def read_tasks(names: Sequence[str], folder: Path | None, limit: int | None) -> Tasks:
    """Finds tasks and reads their data.

    Args:
        names: Tasks, groups and tags of the harness.
        folder: Where tasks of one's own are defined, a YAML file each.
        limit: Documents of each task at most; None is all.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or it cannot be built or run here.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--harness needs the package lm-eval.", fix='Run: pip install "lora-dpo[eval]"')
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--harness-path {folder} is no folder.", fix="Name the folder that holds the tasks' YAML files."
        )
    _quieten()
    manager = _manager(names, folder)
    return Tasks(manager, {name: _build(manager, name) for name in dict.fromkeys(names)}, limit)


def run_tasks(
    work: Work, policies: Policies, tokenizer: PreTrainedTokenizerBase, tasks: Tasks, *, batch_size: int
) -> Harness:
    """Runs tasks before and after; every process must call it, since they share each task's documents.

    Args:
        work: What keeps the numbers.
        policies: The two policies.
        tokenizer: The model's tokenizer.
        tasks: The tasks.
        batch_size: Sequences a forward pass; halved where memory runs out.
    """
    work = replace(work, together=PartialState().num_processes > 1)
    names = list(tasks.built)
    keys = [tasks.key(name) for name in names]
    found = []
    for policy, what in ((policies.before, "harness, before"), (policies.after, "harness, after")):
        with policy() as model:
            runner = _Runner(work, model, tokenizer, tasks, what, batch_size)
            found.append(work.map(what, names, keys, runner, batch_size=1, size=lambda name: 0))
    return {
        "package": _package(),
        "chat_template": False,
        "limit": tasks.limit,
        "tasks": [_joined(*pair) for parts in zip(*found, strict=True) for pair in zip(*parts, strict=True)],
    }


@dataclass
class _Runner:
    """Runs one task with one policy."""

    work: Work
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks
    what: str
    batch_size: int

    def __call__(self, names: list[str]) -> list[list[dict[str, Any]]]:
        return [self._rows(name) for name in names]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        from lm_eval import simple_evaluate

        shared = self.tasks.fewest(name) >= PartialState().num_processes  # the harness fails where a process has none
        while True:
            try:
                found = simple_evaluate(
                    model=_wrapped(self.model, self.tokenizer, self.batch_size, shared=shared),
                    tasks=self.tasks.built[name],
                    task_manager=self.tasks.manager,  # else it would list all tasks again
                    limit=self.tasks.limit,
                    log_samples=False,
                )
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                self.batch_size = self.work.smaller(f"{self.what}, {name}", self.batch_size, error)
                continue
            rows = [] if found is None else list(_numbers(found))  # only the first process is told
            return broadcast_object_list([rows])[0] if self.work.together else rows


def _wrapped(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int, *, shared: bool) -> LM:
    """Returns a loaded model as the harness takes it; if `shared`, the processes divide the documents."""
    from lm_eval.models.huggingface import HFLM

    state = PartialState()

    class Shared(HFLM):
        """By itself the harness takes a loaded model for that of a single process, and fills logs with bars."""

        rank = property(lambda self: state.process_index if shared else 0)
        world_size = property(lambda self: state.num_processes if shared else 1)

        def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
            return gather(tensor)

        def barrier(self) -> None:
            state.wait_for_everyone()

        def loglikelihood(self, requests: list, disable_tqdm: bool = not err.is_terminal) -> list:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = not err.is_terminal) -> list:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests: list, disable_tqdm: bool = not err.is_terminal) -> list:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    return Shared(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))


def _quieten() -> None:
    logging.getLogger("lm_eval.models.huggingface").addFilter(
        lambda record: not record.getMessage().startswith(_SAID_OF_A_LOADED_MODEL)
    )
    if not is_main_process():
        logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.all_subtasks):  # a group may name tasks of the harness; to list those takes 10 seconds
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def _build(manager: TaskManager, name: str) -> list[Task | Group]:
    if name not in manager.task_index:
        near = nearest(name, manager.all_tasks)
        raise UserError(
            f"lm-evaluation-harness has no task '{name}'.",
            fix=(f"Did you mean '{near}'? " if near else "")
            + "`lm-eval ls tasks` lists them; tasks of your own are found with --harness-path FOLDER.",
        )
    try:
        with offline_unless_reachable():
            loaded = manager.load([name])
    except Exception as error:  # a task may run code of its own, and fetch its data in ways of its own
        raise UserError(
            f"The task '{name}' cannot be built: {(str(error).splitlines() or [''])[0]} ({type(error).__name__})",
            why="Most tasks fetch their data from the Hub when they are used for the first time.",
            fix="Where there is no network, run the same command once where there is one, with the same HF_HOME.",
        ) from error
    for own, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            kind = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else "shows pictures"
            raise UserError(f"The task '{own}' {kind}.", fix="Run it with the harness's own command, lm-eval.")
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def _is_group(built: Task | Group) -> bool:
    return hasattr(built, "get_all_tasks")


def _numbers(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            yield {
                "task": task,
                "version": str(found["versions"].get(task, "")),
                "metric": metric,
                "filter": name,
                "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                "n": metrics["sample_len"],
                "shots": found["n-shot"].get(task, 0),
                "value": _number(value),
                "stderr": _number(metrics.get(f"{metric}_stderr,{name}")),
            }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _joined(before: dict[str, Any], after: dict[str, Any]) -> TaskResult:
    same = {key: value for key, value in before.items() if key not in ("value", "stderr")}
    return {
        **same,
        "before": before["value"],
        "after": after["value"],
        "stderr_before": before["stderr"],
        "stderr_after": after["stderr"],
    }


def _package() -> str:
    return f"lm-eval {importlib.metadata.version('lm-eval')}"
