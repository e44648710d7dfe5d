"""Values that YAML readers get wrong: wall times, and one word where a list is meant."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<h>\d+):(?P<m>[0-5]?\d)(?::(?P<s>[0-5]?\d))?")
_UNITS = re.compile(r"(?:\d+(?:\.\d+)?\s*[dhms]\s*)+")

_SMALLEST_PLAIN_SECONDS = 3600  # what a YAML 1.1 reader makes of `1:00:00`
_DURATION_HELP = "write HH:MM:SS, D-HH:MM:SS, or a number with a unit such as 90m, 4h, 2d"


def parse_duration(value: Any) -> timedelta:
    """Reads a wall time.

    A YAML 1.1 reader turns an unquoted `12:30:00` into the integer 45000, which is the number of seconds, so
    integers are seconds. Integers that no such clock time gives are refused: Slurm would read `1440` as minutes.

    Args:
        value: `HH:MM:SS`, `D-HH:MM:SS`, `MM:SS`, a number with a unit, or an integer number of seconds.

    Returns:
        The duration in whole seconds, longer than zero.

    Raises:
        ValueError: The value is none of these.
    """
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a duration; {_DURATION_HELP}")
    elif isinstance(value, int):
        if value < _SMALLEST_PLAIN_SECONDS:
            raise ValueError(f"{value} could be minutes or seconds; {_DURATION_HELP}")
        duration = _timedelta(value)
    else:
        duration = _parse_duration_text(value.strip())
    duration = timedelta(seconds=round(duration.total_seconds()))
    if duration <= timedelta(0):
        raise ValueError(f"{value!r} is no time at all; {_DURATION_HELP}")
    return duration


def _parse_duration_text(text: str) -> timedelta:
    if text.isdecimal():
        return parse_duration(int(text))
    if clock := _CLOCK.fullmatch(text):
        first, second, third = int(clock["h"]), int(clock["m"]), clock["s"]
        days = int(clock["days"] or 0)
        if third is None and not clock["days"]:  # Slurm reads two fields as minutes:seconds, and days-hours:minutes
            return _timedelta(first * 60 + second)
        return _timedelta(days * 86400 + first * 3600 + second * 60 + int(third or 0))
    if _UNITS.fullmatch(text):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
        return _timedelta(sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts))
    raise ValueError(f"{text!r} is not a duration; {_DURATION_HELP}")


def _timedelta(seconds: float) -> timedelta:
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError("the duration is longer than a calendar can count") from None


def format_duration(duration: timedelta) -> str:
    """Returns the duration in the form that Slurm takes: `HH:MM:SS` or `D-HH:MM:SS`."""
    minutes, seconds = divmod(round(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02d}:{minutes:02d}:{seconds:02d}"
    return f"{days}-{clock}" if days else clock


def one_is_a_list(value: Any) -> Any:
    """Returns a list of one where a single word stands for it."""
    return [value] if isinstance(value, str) else value


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["04:00:00", "1-12:00:00", "90m"]}),
]
"""A wall time, written as in Slurm or with units."""

Words = Annotated[list[str], BeforeValidator(one_is_a_list, json_schema_input_type=str | list[str])]
"""A list of words, of which a single one may stand without brackets."""
