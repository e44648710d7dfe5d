"""What all processes must decide or do alike."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

from lora_dpo.errors import UserError

T = TypeVar("T")


def largest(*values: int) -> list[int]:
    """Returns, for each value, the largest that any process gave."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, device=state.device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor.tolist()


def from_first(action: Callable[[], T]) -> T:
    """Calls `action` on the first process and returns its result on all of them.

    Raises:
        UserError: `action` raised it, on the first process.
        SystemExit: It did, on the others, which have nothing to add.
    """
    state = PartialState()
    result, error = None, None
    if state.is_main_process:
        try:
            result = action()
        except UserError as mistake:
            error = mistake
    if state.num_processes > 1:
        failed, result = broadcast_object_list([error is not None, result])
        if failed and error is None:
            raise SystemExit(UserError.exit_code)
    if error is not None:
        raise error
    return result


def on_first(action: Callable[[], T]) -> T | None:
    """Calls `action` on the first process alone; if it fails, no process goes on. All wait until it is done.

    Returns:
        What `action` returned, on the first process; None on the others.

    Raises:
        Exception: What `action` raised, on the first process.
        SystemExit: It failed, on the others.
    """
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = action()
        except Exception as failure:
            error = failure
    (failed,) = largest(int(error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(UserError.exit_code)
    return result


def leave_together() -> None:
    """Ends this process with success where it is one of several; alone, it goes on.

    Gloo's threads outlive their process group, and now and then abort a process while Python takes itself down. The
    launcher would call a run failed that has ended well, so what is left to do at exit is done, and nothing more.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
