"""Runs `lora_dpo.dpo` (or, with STAGE=sft, `lora_dpo.sft`) but for one fault that strikes at a given moment.

    FAULT='{"kind": "kill", "at": "step", "number": 3, "ranks": [1]}' python tests/distributed/faulty.py RECIPE

Kinds: kill (SIGKILL), term, usr1, interrupt (signals), hang (sleeps for ever), nan (the loss becomes NaN), touch FILE,
fill FILE (writes until the disk is full). Moments: data (when the data has been read), reference (after `number`
batches of the reference pass), step (while the step after `number` steps is computed); before save, save, commit
(before the checkpoint of step `number` is written, when it is half written, when all but its manifest is); report
(when the adapter has been saved).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1, "interrupt": signal.SIGINT}


def main() -> None:
    torch.set_num_threads(1)
    fault = json.loads(os.environ.get("FAULT", "{}"))
    rank = int(os.environ.get("RANK", "0"))
    if fault and rank in fault.get("ranks", [rank]):
        MOMENTS[fault["at"]](fault["kind"], fault.get("number", 0))
    from lora_dpo import preparation
    from tests.distributed.train_small import as_on_gpus

    before(preparation, "check_world", lambda *args: as_on_gpus())
    importlib.import_module(f"lora_dpo.{os.environ.get('STAGE', 'dpo')}").main(sys.argv[1:])


def strike(kind: str) -> None:
    kind, _, file = kind.partition(" ")
    if kind == "hang":
        time.sleep(10**6)
    elif kind == "touch":
        Path(file).touch()
    elif kind == "fill":
        with suppress(OSError), open(file, "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
    else:
        os.kill(os.getpid(), SIGNALS[kind])


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    """Calls `action` with a method's arguments before the method itself."""
    plain = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        action(*args, **kwargs)
        return plain(*args, **kwargs)

    setattr(owner, name, replaced)


def at_step(kind: str, number: int) -> None:
    from lora_dpo.training.guarded import GuardedTrainer

    if kind == "nan":
        plain = GuardedTrainer.training_step

        def training_step(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
            if self.state.global_step == number:
                inputs = {**inputs, "pair_weights": inputs["pair_weights"] * float("nan")}
            return plain(self, model, inputs, *args)

        GuardedTrainer.training_step = training_step
    else:
        before(
            GuardedTrainer,
            "training_step",
            lambda self, *args: strike(kind) if self.state.global_step == number else None,
        )


def at_save(kind: str, number: int) -> None:
    from lora_dpo.training import resumable

    before(resumable, "save_continuity", lambda trainer, *args, **kwargs: hit(trainer, kind, number))


def at_commit(kind: str, number: int) -> None:
    from lora_dpo.training.resumable import ResumableTrainer

    before(ResumableTrainer, "_commit", lambda trainer, *args: hit(trainer, kind, number))


def before_save(kind: str, number: int) -> None:
    from lora_dpo.training.resumable import ResumableTrainer

    before(ResumableTrainer, "_save_checkpoint", lambda trainer, *args: hit(trainer, kind, number))


def at_reference(kind: str, number: int) -> None:
    from lora_dpo.training import reference

    reference._FLUSH_SECONDS = 0.0  # after every batch: there are few
    plain, batches = reference.ReferenceCache._write, []

    def write(self: Any, *args: Any) -> None:
        plain(self, *args)
        batches.append(args)
        if len(batches) == number:
            strike(kind)

    reference.ReferenceCache._write = write


def at_data(kind: str, number: int) -> None:
    from lora_dpo import preparation

    before(preparation, "plan_steps", lambda *args: strike(kind))


def hit(trainer: Any, kind: str, number: int) -> None:
    if trainer.state.global_step == number:
        strike(kind)


def at_report(kind: str, number: int) -> None:
    from lora_dpo import pipeline

    before(pipeline, "_evaluate", lambda *args: strike(kind))


MOMENTS = {
    "data": at_data,
    "reference": at_reference,
    "step": at_step,
    "before save": before_save,
    "save": at_save,
    "commit": at_commit,
    "report": at_report,
}

if __name__ == "__main__":
    main()
