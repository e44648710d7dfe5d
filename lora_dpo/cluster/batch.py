"""The decisions of `slurm/train.sbatch` and `slurm/stage.sbatch`: what a job begins with, and what becomes of it.

    python -m lora_dpo.cluster.batch begin RECIPE [section.key=value ...]
    python -m lora_dpo.cluster.batch ended SRUN_CODE ASKED RECIPE [section.key=value ...]
    python -m lora_dpo.cluster.batch begin-verb VERB [ARGUMENT ...]
    python -m lora_dpo.cluster.batch ended-verb CODE ASKED VERB [ARGUMENT ...]
    python -m lora_dpo.cluster.batch not-requeued WHAT_SLURM_SAYS RECIPE [section.key=value ...]

The scripts talk to Slurm, this to the run folder: in a container there is no Slurm, and outside of it maybe no Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lora_dpo.cluster.diagnosis import Diagnosis, NodeReport, diagnose
from lora_dpo.cluster.job import RUN, STAGE, Job, TrainingJob, kept_recipe
from lora_dpo.cluster.output import Unfailing
from lora_dpo.cluster.record import Record
from lora_dpo.cluster.requeue import Attempt, Cause, Decision, Policy, decide
from lora_dpo.cluster.start import check_can_start
from lora_dpo.console import STOPPED_EXIT_CODE, errors_end_the_program, note
from lora_dpo.errors import UserError
from lora_dpo.files import remove
from lora_dpo.recipe.folds import check_is_one_training
from lora_dpo.recipe.loading import load_recipe
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import RunSection

ENDED_BY_SLURM = "the end of the job"
"""What the batch script was asked by when Slurm was ending the job already."""
_CAUSES: dict[str, Cause] = {
    "the job's time limit": "time limit",
    "train.max_hours": "time limit",
    "SIGUSR1": "time limit",
    "preemption": "preemption",
    "SIGTERM": "failure",  # somebody or something has ended the step
    ENDED_BY_SLURM: "ended by Slurm",
}
"""What a training says that it was stopped by where nobody wished it; anything else is a wish, in a stop file."""
_SAYS_NOTHING = ("SIGTERM", "SIGUSR1", "a stop file")
"""Reasons of a training beside which the batch script knows better: it has sent them itself, or heard why."""
_WAITS_SECONDS = 120
_GIVEN_UP_BEFORE = "An earlier job of this chain has given up"


def main(words: Sequence[str] | None = None) -> int:
    """Carries out one of the module's verbs.

    Args:
        words: The verb and what follows it; None takes the process's own.

    Returns:
        The exit code for the script.
    """
    verb, *rest = sys.argv[1:] if words is None else words
    with errors_end_the_program():
        return _VERBS[verb](rest)


def _begin(words: Sequence[str]) -> int:
    """Prints the stop file and the recipe to go on with, a line each, if there is anything to do."""
    Policy.of()
    training = TrainingJob.of(_as_it_began(words))
    job, recipe, run = training.job, training.recipe, training.run
    check_is_one_training(recipe)
    _write_down_what_vanished(job, training.newest_step())
    if run.is_finished(recipe):
        note(f"The run is complete: {run.report_md}")
        reason = "The run was complete."
        job.write_down("ended", cause="done", reason=reason, exit_code=0, requeued=False, action="done")
        return 0
    _check_chain(job)
    _wait_for_the_start_before(run)
    check_can_start(recipe, run, overwrite=False)
    for left in (run.stop_file, run.stopped, job.reports):  # what an earlier start was asked, and how it ended
        remove(left)
    step = training.newest_step()
    job.write_down("started", from_step=step)
    with suppress(OSError):
        job.log().parent.mkdir(parents=True, exist_ok=True)
    again = f", restart {job.restart}" if job.restart else ""
    goes_on = f", from step {step} on" if step else ""
    note(f"Job {job.id}{again}: {job.stage} of {run.path} on {', '.join(job.nodes)}{goes_on}. Logs: {job.logs}")
    print(run.stop_file.absolute())
    print(training.freeze().absolute())
    return 0


def _as_it_began(words: Sequence[str]) -> Sequence[str]:
    """Returns the recipe that an earlier start of this job has kept, in place of a file that may have been edited."""
    if not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return words
    folder = RunSection.model_fields["folder"].default
    with suppress(UserError):
        folder = load_recipe(words[0], words[1:]).run.folder
    kept = sorted(Path(folder).glob(f"*/slurm/{kept_recipe(os.environ['SLURM_JOB_ID'])}"))
    return [str(kept[0])] if len(kept) == 1 else words


def _ended(words: Sequence[str]) -> int:
    """Writes down how an attempt ended, and prints `requeue` if the job is to be requeued."""
    code, asked, *rest = words
    training = TrainingJob.of(rest)
    reports = NodeReport.read_all(training.job.reports)
    began = [event for event in training.job.events() if event["event"] == "started"]
    from_step = began[-1].get("from_step", 0) if began else 0
    attempt, details = judge(training, reports, int(code), asked)
    attempt = Attempt(attempt.cause, attempt.words, attempt.exit_code, from_step, training.newest_step())
    return _settle(training.job, attempt, details)


def judge(training: TrainingJob, reports: Sequence[NodeReport], code: int, asked: str) -> tuple[Attempt, str]:
    """Finds out why an attempt ended.

    Args:
        training: The job.
        reports: What its nodes have written down.
        code: srun's exit code.
        asked: What the batch script was asked to stop by; empty for nothing.

    Returns:
        The attempt, without its steps, and more lines for the log.
    """
    if training.run.is_finished(training.recipe):
        return Attempt("done", "The run is complete."), ""
    codes = {report.exit_code for report in reports}
    all_said = {report.node for report in reports} >= set(training.job.nodes)
    if UserError.exit_code in codes or (code == UserError.exit_code and not all_said):
        told = next((report.told for report in reports if report.told), "There is a mistake to mend; the log has it.")
        return Attempt("mistake", told, UserError.exit_code), ""
    failed = codes - {0, STOPPED_EXIT_CODE}
    # It is written when the checkpoint is there. Launchers that Slurm ends as well may fail after that.
    reason = _stopped_by(training.run)
    if reason or (STOPPED_EXIT_CODE in codes and not failed and all_said):
        reason = reason or next((report.told for report in reports if report.told), asked)
        cause = _CAUSES[asked] if asked and reason in _SAYS_NOTHING else _CAUSES.get(reason, "asked")
        return Attempt(cause, f"Stopped by {reason or 'a stop file'}, in order.", STOPPED_EXIT_CODE), ""
    if asked:
        words = f"Ended by {asked}, before it could save."
        return Attempt(_CAUSES[asked], words, max(failed, default=code or 1)), ""
    diagnosis: Diagnosis = diagnose(reports, training.job.nodes, training.job.logs)
    return Attempt("failure", diagnosis.words, max(failed, default=code or 1)), diagnosis.details


def _begin_verb(words: Sequence[str]) -> int:
    """Writes down that a verb begins; one that is through already says so itself."""
    Policy.of()
    job = _verb_job(words)
    _write_down_what_vanished(job, 0)
    _check_chain(job)
    job.write_down("started")
    note(f"Job {job.id}: lora-dpo {' '.join(words)} on {', '.join(job.nodes)}")
    return 0


def _ended_verb(words: Sequence[str]) -> int:
    code, asked, *rest = words
    exit_code = int(code)
    verb = f"lora-dpo {rest[0]}"
    if exit_code == 0:
        attempt = Attempt("done", f"{verb} is through.")
    elif exit_code == UserError.exit_code:
        attempt = Attempt("mistake", f"{verb} found a mistake to mend; the log has it.", exit_code)
    elif asked:
        attempt = Attempt(_CAUSES[asked], f"Ended by {asked}.", exit_code)
    else:
        attempt = Attempt("failure", f"{verb} failed with exit code {exit_code}.", exit_code)
    return _settle(_verb_job(rest), attempt, "")


def _not_requeued(words: Sequence[str]) -> int:
    """Corrects the record when Slurm would not requeue the job."""
    said, *rest = words
    return _correct(TrainingJob.of(rest).job, said)


def _not_requeued_verb(words: Sequence[str]) -> int:
    said, *rest = words
    return _correct(_verb_job(rest), said)


def _correct(job: Job, said: str) -> int:
    reason = f"Slurm would not requeue the job: {said}"
    note(reason)
    job.write_down("ended", cause="asked", reason=reason, exit_code=STOPPED_EXIT_CODE, requeued=False, action="stop")
    return 0


def _settle(job: Job, attempt: Attempt, details: str) -> int:
    """Decides, says so and writes it down."""
    earlier = [Attempt.of_event(event) for event in job.events() if event["event"] == "ended"]
    decision: Decision = decide(attempt, earlier, Policy.of())
    job.write_down(
        "ended",
        cause=attempt.cause,
        reason=decision.reason,
        exit_code=decision.exit_code,
        requeued=decision.action == "requeue",
        action=decision.action,
        from_step=attempt.from_step,
        step=attempt.step,
    )
    if details:
        note(details)
    words = {"requeue": "The job is requeued", "chain": "Left to the chain", "stop": "The job ends", "done": "Done"}
    at = f" after step {attempt.step}" if attempt.step and attempt.cause != "done" else ""
    note(f"{words[decision.action]}{at}: {decision.reason}")
    if decision.action == "requeue":
        print("requeue")
    return decision.exit_code


def _wait_for_the_start_before(run: RunFolder) -> None:
    """Waits, but not for ever, until a start that Slurm is still ending has let go of the run."""
    for _ in range(_WAITS_SECONDS if run.is_run else 0):
        try:
            run.lock().release()
        except UserError:
            time.sleep(1)
        else:
            return


def _write_down_what_vanished(job: Job, step: int) -> None:
    """Adds the end of an earlier start that could not do so itself."""
    last = next((event for event in reversed(job.events()) if event["event"] in ("started", "ended")), None)
    if last is None or last["event"] == "ended" or job.home is None:
        return
    was = {key: last.get(key) for key in ("job", "array_task", "restart", "stage", "nodes", "chain", "from_step")}
    reason = "It ended without a word, as when a node dies or nothing is left of the grace time."
    back = last.get("job") == job.id  # else it is the next one of a chain that finds this out
    Record(job.home).append("ended", **was, cause="vanished", reason=reason, exit_code=None, requeued=back, step=step)


def _check_chain(job: Job) -> None:
    """Ends a chained job at once when an earlier one has given up.

    Raises:
        UserError: It has.
    """
    if job.chain is None:
        return
    ended = [event for event in job.events() if event["event"] == "ended" and event.get("job") != job.id]
    if ended and ended[-1].get("action") == "stop":
        last = ended[-1]
        said = last["reason"]
        if not said.startswith(_GIVEN_UP_BEFORE):
            said = f"{_GIVEN_UP_BEFORE} (job {last['job']}): {said}"
        code = last["exit_code"]
        job.write_down("ended", cause=last["cause"], reason=said, exit_code=code, requeued=False, action="stop")
        raise UserError(said, fix="Mend it, and submit again.")


def _verb_job(words: Sequence[str]) -> Job:
    if not words:
        raise UserError("There is no verb.", fix="Give one: sbatch stage.sbatch merge runs/mine -o merged/mine")
    home = os.environ.get(RUN)
    return Job.of(os.environ.get(STAGE) or words[0], RunFolder(Path(home)) if home else None)


def _stopped_by(run: RunFolder) -> str:
    try:
        return str(json.loads(run.stopped.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError):
        return ""


_VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "begin": _begin,
    "ended": _ended,
    "begin-verb": _begin_verb,
    "ended-verb": _ended_verb,
    "not-requeued": _not_requeued,
    "not-requeued-verb": _not_requeued_verb,
}


if __name__ == "__main__":
    sys.stderr = Unfailing(sys.stderr)
    sys.exit(main())
