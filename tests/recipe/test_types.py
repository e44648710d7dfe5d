from __future__ import annotations

from datetime import timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lora_dpo.recipe.types import Duration, Words, format_duration, parse_duration
from lora_dpo.recipe.yaml_source import parse_value

HALF_PAST_TWELVE = timedelta(hours=12, minutes=30)


def test_a_wall_time_is_the_same_whichever_reader_saw_it() -> None:
    by_pyyaml = yaml.safe_load("time: 12:30:00")["time"]
    by_us = parse_value("12:30:00", "test")
    assert (by_pyyaml, by_us) == (45000, "12:30:00")
    assert parse_duration(by_pyyaml) == parse_duration(by_us) == HALF_PAST_TWELVE


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("4:00:00", timedelta(hours=4)),
        ("04:00:00", timedelta(hours=4)),
        (14400, timedelta(hours=4)),
        ("14400", timedelta(hours=4)),
        ("2-12:30:00", timedelta(days=2) + HALF_PAST_TWELVE),
        ("2-12:30", timedelta(days=2) + HALF_PAST_TWELVE),
        ("30:15", timedelta(minutes=30, seconds=15)),
        ("100:00:00", timedelta(hours=100)),
        ("90m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("1d 12h", timedelta(hours=36)),
        ("2d", timedelta(days=2)),
        (" 45s ", timedelta(seconds=45)),
        (timedelta(minutes=7), timedelta(minutes=7)),
    ],
)
def test_durations(written: object, expected: timedelta) -> None:
    assert parse_duration(written) == expected


@pytest.mark.parametrize("written", [90, "90", 1440, "1440", 3599, -5000])
def test_a_small_number_could_be_minutes_or_seconds(written: object) -> None:
    with pytest.raises(ValueError, match="could be minutes or seconds; write HH:MM:SS"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["00:00:00", "0h", "0.2s", timedelta(0), timedelta(seconds=-1)])
def test_no_time_at_all_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is no time at all"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["tomorrow", "", "12:99:00", "4 hours", "1:2:3:4", "h", True, 4.5, None, [], "²"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write HH:MM:SS"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["99999999999d", 10**20, "9" * 30 + ":00:00"])
def test_more_time_than_there_is_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="longer than a calendar can count"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(hours=4), "04:00:00"),
        (timedelta(days=1, hours=12), "1-12:00:00"),
        (timedelta(minutes=30, seconds=15), "00:30:15"),
    ],
)
def test_durations_are_written_as_slurm_takes_them(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.integers(min_value=1, max_value=10**9))
def test_a_duration_survives_being_written_and_read(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    text = format_duration(duration)
    assert parse_duration(text) == duration
    assert parse_duration(parse_value(text, "test")) == duration
    assert parse_duration(yaml.safe_load(yaml.safe_dump(text))) == duration


def test_a_duration_is_text_in_json() -> None:
    adapter = TypeAdapter(Duration)
    assert adapter.dump_python(adapter.validate_python("90m"), mode="json") == "01:30:00"
    with pytest.raises(ValidationError, match="90 could be minutes or seconds"):
        adapter.validate_python(90)


@pytest.mark.parametrize("written", ["5e-6", "5.0e-6", "5.e-6", "0.000005", "5E-6", "+5e-06", ".5e-5"])
def test_a_learning_rate_is_a_number_with_both_readers(written: str) -> None:
    number = TypeAdapter(float)
    assert number.validate_python(parse_value(written, "test")) == 5e-6
    assert isinstance(parse_value(written, "test"), float)
    assert number.validate_python(yaml.safe_load(written)) == 5e-6  # PyYAML reads some of them as text


def test_one_word_stands_for_a_list_of_one() -> None:
    words = TypeAdapter(Words)
    assert words.validate_python("wandb") == ["wandb"]
    assert words.validate_python(["wandb", "tensorboard"]) == ["wandb", "tensorboard"]
    with pytest.raises(ValidationError):
        words.validate_python(3)
