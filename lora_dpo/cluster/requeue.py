"""Whether a job that has ended is started again: requeued, left to the next of a chain, or given up, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lora_dpo.console import STOPPED_EXIT_CODE
from lora_dpo.errors import UserError, did_you_mean

Cause = Literal["done", "mistake", "asked", "time limit", "preemption", "ended by Slurm", "failure", "vanished"]
"""Why an attempt ended.

`asked`: somebody wrote a stop file. `ended by Slurm`: Slurm was ending the job already, by scancel or by a preemption
without grace, and requeues it itself if it means to. `vanished`: it never said, as when its node died.
"""
Mode = Literal["requeue", "chain", "never"]
Action = Literal["done", "requeue", "chain", "stop"]

MODE = "LORA_DPO_REQUEUE"
MAX_RESTARTS = "LORA_DPO_MAX_RESTARTS"
IN_A_ROW = 3
"""Attempts in a row that fail, or run out of time, before they have saved anything new; then it is given up."""
_COUNTED = ("time limit", "failure")


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be done with a job that has not gone through.

    Attributes:
        mode: `requeue` it, leave it to the next job of a `chain`, or `never` start it again.
        max_restarts: Most restarts after time limits and failures; preemptions and dead nodes are not counted.
    """

    mode: Mode = "requeue"
    max_restarts: int = 20

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Policy:
        """Reads LORA_DPO_REQUEUE and LORA_DPO_MAX_RESTARTS.

        Raises:
            UserError: One of them is no such value.
        """
        mode = environment.get(MODE) or cls().mode
        if mode not in get_args(Mode):
            raise UserError(f"{MODE}={mode} is no way to go on after a stop.", fix=did_you_mean(mode, get_args(Mode)))
        most = environment.get(MAX_RESTARTS) or str(cls().max_restarts)
        if not most.isdecimal():
            raise UserError(
                f"{MAX_RESTARTS}={most} is no number of restarts.", fix=f"Take one such as {MAX_RESTARTS}=20."
            )
        return cls(mode, int(most))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a job that has ended.

    Attributes:
        cause: Why it ended.
        words: What there is to say about it, a sentence.
        exit_code: The training's own.
        from_step: Optimizer step of the checkpoint that it began from, 0 for none.
        step: That of the newest one when it ended.
    """

    cause: Cause
    words: str = ""
    exit_code: int = 0
    from_step: int = 0
    step: int = 0

    @classmethod
    def of_event(cls, event: Mapping[str, Any]) -> Attempt:
        """Returns the attempt that an `ended` line of the record tells of."""
        cause = event.get("cause", "vanished")
        step = event.get("step") or 0
        return cls(cause, event.get("reason", ""), event.get("exit_code") or 0, event.get("from_step") or 0, step)

    @property
    def in_vain(self) -> bool:
        """Whether it failed or ran out of time, and left nothing new to go on from."""
        return self.cause in _COUNTED and self.step <= self.from_step


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the job.

    Attributes:
        action: What to do.
        reason: Why, in words for the log and the record.
        exit_code: What the job ends with, if it does.
    """

    action: Action
    reason: str
    exit_code: int


def decide(attempt: Attempt, earlier: Iterable[Attempt], policy: Policy) -> Decision:
    """Decides what becomes of a job.

    Args:
        attempt: The one that has just ended.
        earlier: Those of the same job, or of the same chain of jobs, oldest first.
        policy: What is allowed.
    """
    code = attempt.exit_code
    if attempt.cause == "done":
        return Decision("done", attempt.words, 0)
    if attempt.cause == "mistake":
        return Decision("stop", f"{attempt.words} Starting again would not mend that.", code)
    if attempt.cause == "ended by Slurm" and policy.mode == "chain":  # as what vanished: there was only time to say so
        return Decision("chain", f"{attempt.words} The next job of the chain goes on.", code or STOPPED_EXIT_CODE)
    if attempt.cause in ("asked", "ended by Slurm"):
        return Decision("stop", attempt.words, code or STOPPED_EXIT_CODE)
    attempts = [*earlier, attempt]
    if _in_vain(attempts) >= IN_A_ROW:
        why = f"{IN_A_ROW} starts in a row ended so before they had saved anything new: it is given up."
        return Decision("stop", f"{attempt.words} {why}", code or STOPPED_EXIT_CODE)
    counted = sum(each.cause in _COUNTED for each in attempts)
    if attempt.cause in _COUNTED and counted > policy.max_restarts:
        why = f"It has been started again {counted - 1} times ({MAX_RESTARTS}={policy.max_restarts}): it is given up."
        return Decision("stop", f"{attempt.words} {why}", code or STOPPED_EXIT_CODE)
    if policy.mode == "never":
        why = f"No other start is planned ({MODE}=never): submit it again to go on."
        return Decision("stop", f"{attempt.words} {why}", code or STOPPED_EXIT_CODE)
    if policy.mode == "chain":
        return Decision("chain", f"{attempt.words} The next job of the chain goes on.", code or STOPPED_EXIT_CODE)
    return Decision("requeue", attempt.words, code or STOPPED_EXIT_CODE)


def _in_vain(attempts: list[Attempt]) -> int:
    """Counts the last attempts that were in vain; a preemption in between says nothing about them."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.in_vain:
            count += 1
        elif attempt.cause in _COUNTED or attempt.step > attempt.from_step:
            break
    return count
