from __future__ import annotations

import pytest

from lora_dpo.cluster.requeue import Attempt, Cause, Mode, Policy, decide
from lora_dpo.errors import UserError

SAVED = {"from_step": 10, "step": 20}
IN_VAIN = {"from_step": 10, "step": 10}


def attempt(cause: Cause, **values) -> Attempt:
    codes = {"done": 0, "mistake": 2, "failure": 1, "vanished": 0}
    return Attempt(cause, f"Because of {cause}.", codes.get(cause, 85), **(SAVED | values))


@pytest.mark.parametrize(
    ("cause", "mode", "action", "code"),
    [
        ("done", "requeue", "done", 0),
        ("done", "never", "done", 0),
        ("mistake", "requeue", "stop", 2),
        ("mistake", "chain", "stop", 2),
        ("asked", "requeue", "stop", 85),
        ("ended by Slurm", "requeue", "stop", 85),
        ("ended by Slurm", "chain", "chain", 85),
        ("time limit", "requeue", "requeue", 85),
        ("time limit", "chain", "chain", 85),
        ("time limit", "never", "stop", 85),
        ("preemption", "requeue", "requeue", 85),
        ("failure", "requeue", "requeue", 1),
        ("failure", "chain", "chain", 1),
        ("failure", "never", "stop", 1),
    ],
)
def test_what_becomes_of_a_job(cause: Cause, mode: Mode, action: str, code: int):
    decision = decide(attempt(cause), [], Policy(mode))
    assert (decision.action, decision.exit_code) == (action, code)
    assert decision.reason.startswith(f"Because of {cause}.")


@pytest.mark.parametrize("cause", ["failure", "time limit"])
def test_three_in_a_row_that_saved_nothing_new_are_enough(cause: Cause):
    earlier = [attempt(cause, **IN_VAIN)]
    assert decide(attempt(cause, **IN_VAIN), earlier, Policy()).action == "requeue"
    decision = decide(attempt(cause, **IN_VAIN), 2 * earlier, Policy())
    assert decision.action == "stop"
    assert "3 starts in a row ended so before they had saved anything new: it is given up." in decision.reason
    assert decision.exit_code == attempt(cause).exit_code


@pytest.mark.parametrize("between", ["preemption", "vanished"])
def test_a_preemption_in_between_does_not_make_failures_fewer(between: Cause):
    failure = attempt("failure", **IN_VAIN)
    assert decide(failure, [failure, attempt(between, **IN_VAIN), failure], Policy()).action == "stop"
    assert decide(failure, [failure, attempt(between, **SAVED), failure], Policy()).action == "requeue"


def test_what_was_saved_in_between_begins_the_count_anew():
    failure = attempt("failure", **IN_VAIN)
    assert decide(failure, [failure, failure, attempt("failure", **SAVED), failure], Policy()).action == "requeue"


def test_the_cap_counts_time_limits_and_failures_alone():
    earlier = [attempt("time limit"), attempt("preemption"), attempt("vanished"), attempt("failure")]
    assert decide(attempt("time limit"), earlier, Policy(max_restarts=3)).action == "requeue"
    decision = decide(attempt("time limit"), earlier, Policy(max_restarts=2))
    assert (decision.action, decision.exit_code) == ("stop", 85)
    assert "It has been started again 2 times (LORA_DPO_MAX_RESTARTS=2): it is given up." in decision.reason
    assert decide(attempt("preemption"), 100 * earlier, Policy(max_restarts=2)).action == "requeue"


def test_the_policy_comes_from_the_environment():
    assert Policy.of({}) == Policy("requeue", 20)
    assert Policy.of({"LORA_DPO_REQUEUE": "chain", "LORA_DPO_MAX_RESTARTS": "3"}) == Policy("chain", 3)
    with pytest.raises(UserError, match="LORA_DPO_REQUEUE=reqeue is no way.*\n.*Did you mean 'requeue'?"):
        Policy.of({"LORA_DPO_REQUEUE": "reqeue"})
    with pytest.raises(UserError, match="LORA_DPO_MAX_RESTARTS=many is no number"):
        Policy.of({"LORA_DPO_MAX_RESTARTS": "many"})


def test_an_attempt_is_read_back_from_the_record():
    event = {"event": "ended", "cause": "failure", "reason": "r", "exit_code": 1, "from_step": 3, "step": 3}
    assert Attempt.of_event(event) == Attempt("failure", "r", 1, 3, 3)
    assert Attempt.of_event({"event": "ended", "exit_code": None, "step": None}) == Attempt("vanished")
