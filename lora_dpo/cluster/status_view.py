"""How `lora-dpo status` looks: a panel a run, a table of all runs, a live view that ends with the jobs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_dpo.cluster.advance import Advance
from lora_dpo.cluster.status import JobStatus, RunStatus
from lora_dpo.console import err, out

_LOOKS_EACH_SECONDS = 5.0
_STYLES = {
    "RUNNING": "green",
    "COMPLETED": "green",
    "PENDING": "yellow",
    "COMPLETING": "green",
    "CHAINED": "green",
    "FAILED": "red",
    "STOPPED": "yellow",
    "UNKNOWN": "red",
}
_RESTARTS_SHOWN = 8


def headline(status: RunStatus) -> str:
    """Returns where a run is, in a sentence."""
    current = _current(status)
    if current is None:
        if (failed := status.failed) is not None:
            return f"{failed.step} ended: {failed.ended}"
        return "complete" if status.jobs else "no jobs"
    if current.state == "PENDING":
        expected = f", expected to start {_clock(current.start)}" if current.start is not None else ""
        again = "again " if any(restart.job == current.job for restart in status.restarts) else ""
        return f"{current.step} waits {again}({current.waits_for or 'for nodes'}){expected}"
    if current.step not in ("sft", "dpo"):
        return f"{current.step} runs"
    return _training_words(current.step, status.advance)


def panel(status: RunStatus, now: datetime | None = None) -> Panel:
    """Returns all that is known of a run.

    Args:
        status: What is known.
        now: The time; None is the clock's.
    """
    now = now or datetime.now()
    parts: list[RenderableType] = [Text(headline(status), style="bold"), Text()]
    if status.advance is not None:
        parts += [_advance(status.advance), *_numbers(status, now), Text()]
    parts.append(_jobs(status.jobs))
    if status.restarts:
        parts += [Text(), *_restarts(status)]
    parts.append(Text())
    parts += _where(status)
    if status.remark:
        parts.append(Text(status.remark, style="yellow"))
    return Panel(Group(*parts), title=f"[bold]{_short(status.run.path)}[/bold]", title_align="left", padding=(0, 1))


def overview(statuses: Sequence[RunStatus]) -> Table:
    """Returns a table with a line a run."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("run", "jobs", "step", "loss", "margin", "left", "state"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        advance = status.advance
        table.add_row(
            _short(status.run.path),
            " ".join(job.job for job in status.jobs if job.is_open) or "-",
            _steps(advance) if advance else "-",
            _number(advance.loss if advance else None, "{:.3f}"),
            _number(advance.margin if advance else None, "{:+.3f}"),
            _span(advance.seconds_left) if advance and not status.has_ended else "-",
            headline(status),
        )
    return table


def watch(look: Callable[[], RunStatus]) -> RunStatus:
    """Shows a run until none of its jobs waits or runs.

    On a terminal it is one panel that is drawn again and again; elsewhere a line where something has changed.

    Args:
        look: Finds out what is known now.

    Returns:
        What was known last.
    """
    status = look()
    if not out.is_terminal:
        return _lines(status, look)
    with Live(panel(status), console=out, auto_refresh=False) as live:
        while not status.has_ended:
            time.sleep(_LOOKS_EACH_SECONDS)
            status = look()
            live.update(panel(status), refresh=True)
    return status


def _lines(status: RunStatus, look: Callable[[], RunStatus]) -> RunStatus:
    said = None
    while True:
        words = headline(status)
        if words != said:
            err.print(f"{datetime.now():%H:%M:%S} {words}", soft_wrap=True, markup=False)
            said = words
        if status.has_ended:
            out.print(panel(status))
            return status
        time.sleep(_LOOKS_EACH_SECONDS)
        status = look()


def _current(status: RunStatus) -> JobStatus | None:
    return next((job for job in status.jobs if job.is_open), None)


def _training_words(step: str, advance: Advance | None) -> str:
    if advance is None or advance.max_steps is None:
        return f"{step} starts: data, model, reference"
    if advance.step >= advance.max_steps:
        return f"{step} has trained all {advance.max_steps} steps, and makes its report"
    return f"{step} trains: step {_steps(advance)}"


def _steps(advance: Advance) -> str:
    return f"{advance.step}/{advance.max_steps or '?'}"


def _advance(advance: Advance) -> RenderableType:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(width=14)
    line.add_column(ratio=1)
    bar = ProgressBar(total=advance.max_steps or 1, completed=advance.step if advance.max_steps else 0)
    line.add_row(f"step {_steps(advance)}", bar)
    return line


def _numbers(status: RunStatus, now: datetime) -> list[Text]:
    advance, current = status.advance, _current(status)
    if advance is None:
        return []
    figures = [
        _labelled("loss", _number(advance.loss, "{:.3f}")),
        _labelled("margin", _number(advance.margin, "{:+.3f}")),
        _labelled("tokens/s", _number(advance.tokens_per_second, "{:,.0f}")),
        _labelled("saved", f"step {advance.saved_step}" if advance.saved_step else "-"),
    ]
    lines = [Text("   ".join(figure for figure in figures if not figure.endswith(" -")))]
    runs = current is not None and current.state == "RUNNING" and current.step in ("sft", "dpo")
    if runs and advance.seconds_left is not None and not advance.is_complete:
        lines.append(Text(_time_words(advance, current, now)))
    return lines


def _time_words(advance: Advance, job: JobStatus, now: datetime) -> str:
    left = timedelta(seconds=advance.seconds_left or 0)
    words = f"{_span(left.total_seconds())} left, until {_clock(now + left)}"
    if job.end is not None:
        fits = now + left <= job.end
        words += f"; the job's time ends {_clock(job.end)}"
        words += ", which is enough" if fits else ", before that: it saves and goes on in another start"
    if advance.seconds_ago is not None and advance.seconds_ago > 120:
        words += f"; last step {_span(advance.seconds_ago)} ago"
    return words


def _jobs(jobs: Sequence[JobStatus]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("job", "step", "state", "nodes", ""):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        state = Text(job.state, style=_STYLES.get(job.state, "red" if job.ended else ""))
        words = ". ".join(word for word in (_when(job), job.ended or job.waits_for) if word)
        table.add_row(job.job, job.step, state, job.nodes or "-", words)
    return table


def _when(job: JobStatus) -> str:
    if job.ended:
        return _clock(job.end) if job.end else ""
    if job.state == "PENDING":
        return f"next start {_clock(job.start)}" if job.start else ""
    since = f"since {_clock(job.start)}" if job.start else ""
    return f"{since}, at most until {_clock(job.end)}" if job.end else since


def _restarts(status: RunStatus) -> list[Text]:
    count = len(status.restarts)
    shown = status.restarts[-_RESTARTS_SHOWN:]
    more = f", the last {len(shown)}" if count > len(shown) else ""
    lines = [Text(f"{count} restart{'s' if count > 1 else ''}{more}:")]
    for restart in shown:
        at = f", saved at step {restart.step}" if restart.step else ""
        when = _event_clock(restart.time) if restart.time else "lately"
        lines.append(Text(f"  {when} job {restart.job}{at}: {restart.reason}"))
    return lines


def _where(status: RunStatus) -> list[Text]:
    lines = [Text(f"logs    {_short(status.logs)}/    lora-dpo logs {shlex.quote(_short(status.run.path))} --follow")]
    if status.report is not None:
        lines.append(Text(f"report  {_short(status.report)}"))
    return lines


def _labelled(name: str, value: str) -> str:
    return f"{name} {value}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _clock(time: datetime | None) -> str:
    if time is None:
        return "-"
    return f"{time:%H:%M:%S}" if time.date() == datetime.now().date() else f"{time:%Y-%m-%d %H:%M}"


def _event_clock(text: str) -> str:
    try:
        return _clock(datetime.fromisoformat(text).astimezone().replace(tzinfo=None))
    except ValueError:
        return text


def _short(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
