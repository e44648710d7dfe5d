"""Reads the sources of the SFT stage: from rows to examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from lora_dpo.data.convert import check_prompt, format_of
from lora_dpo.data.example import Example
from lora_dpo.data.formats.base import BadRowError, Values
from lora_dpo.data.formats.instruction import AnswerFormat, mapped_answers, recognise_answers
from lora_dpo.data.pair import group_of
from lora_dpo.data.progress import counted
from lora_dpo.data.report import OnBadRow, ReadReport
from lora_dpo.data.row import Row
from lora_dpo.data.sources import streams
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe, SFTSection, Source


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """All examples of a recipe's SFT stage, as they were read: neither linted nor divided.

    Args:
        by_source: The examples of each source, in the recipe's order.
        report: What was read and left out, over all sources.
        formats: The names of the formats met in each source.
    """

    by_source: list[list[Example]] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)
    formats: list[list[str]] = field(default_factory=list)


def load_examples(recipe: Recipe) -> LoadedExamples:
    """Reads all sources of a recipe's SFT stage.

    Args:
        recipe: The recipe; of its data section `on_bad_row` holds here as well.

    Raises:
        UserError: A source does not exist, cannot be read, is of no known format, or holds no answer.
    """
    loaded = LoadedExamples()
    for number, source in enumerate(recipe.sft.sources()):
        report, examples, formats = ReadReport(), [], {}
        for where, rows in streams(source, recipe.data.on_bad_row, report, key="sft.path"):
            known, rows = format_of(counted(rows, f"Reading {where}"), _finder(recipe.sft), report, where)
            formats[known.name] = known
            examples += _convert(known.standing(rows), known, recipe.data.on_bad_row, report, number)
        if not examples:
            raise _no_answers(source, report, formats)
        loaded.by_source.append(examples)
        loaded.formats.append(list(formats))
        loaded.report.add(report)
    return loaded


def _finder(sft: SFTSection) -> Callable[[Sequence[Values], str], AnswerFormat]:
    return recognise_answers if sft.columns is None else partial(mapped_answers, sft.columns)


def _convert(
    rows: Iterable[Row], known: AnswerFormat, on_bad_row: OnBadRow, report: ReadReport, source: int
) -> Iterator[Example]:
    for row in rows:
        try:
            taught = known.convert(row.values)
            for each in taught:
                check_prompt(each.prompt)
        except BadRowError as bad:
            report.bad_row(str(bad), row.where, on_bad_row)
            continue
        report.rows_without_pair += not taught
        for each in taught:  # the answers of a conversation stay together
            group = each.group or group_of(taught[0].prompt)
            yield Example(each.prompt, each.answer, group, origin=row.where, source=source)


def _no_answers(source: Source, report: ReadReport, formats: Iterable[str]) -> UserError:
    why = f"Read as {', '.join(formats)}: {report.rows} rows, {report.bad_rows} of them bad, "
    why += f"{report.rows_without_pair} without an answer."
    if report.reasons:
        why += "\nThe first reasons:\n" + "\n".join(f"  {reason}" for reason in report.reasons)
    return UserError("the source holds no answer", why=why, fix="Check the file's columns.", where=source.path)
