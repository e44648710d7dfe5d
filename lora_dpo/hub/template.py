"""Cards from Jinja templates, the package's and users' own, and whether the Hub will take what comes out."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import DatasetCard, ModelCard
from jinja2 import meta

from lora_dpo.errors import UserError
from lora_dpo.hub.licence import Licence
from lora_dpo.hub.licences import IDENTIFIERS

_LISTS = ("base_model", "datasets", "tags", "language")
"""Metadata that is a word or a list of words."""


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Returns a page of a Jinja template.

    Args:
        template: The file.
        values: What it may name.

    Raises:
        UserError: The template cannot be read, has a mistake, or names a value that there is not.
    """
    environment, text = _environment(), _read(template)
    try:
        return environment.from_string(text).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise _syntax_error(template, error) from None
    except Exception as error:
        if template.parent == Path(__file__).parent:
            raise  # a mistake in the package's own is a bug
        undefined = isinstance(error, jinja2.UndefinedError)
        raise UserError(
            f"The template cannot be filled in: {'' if undefined else f'{type(error).__name__}: '}{error}.",
            fix=f"It may name: {', '.join(sorted(values))}." if undefined else "It is one file, without others.",
            where=f"{template}:{_line(error)}",
        ) from None


def check_template(template: Path, known: Iterable[str]) -> None:
    """Checks what can be known of a template before there is anything to fill it with.

    Args:
        template: The file.
        known: What it may name.

    Raises:
        UserError: It cannot be read, has a mistake, or names a value that there is not.
    """
    try:
        named = meta.find_undeclared_variables(_environment().parse(_read(template)))
    except jinja2.TemplateSyntaxError as error:
        raise _syntax_error(template, error) from None
    if strange := sorted(named - set(known)):
        raise UserError(
            f"The template names {strange[0]!r}, which there is not.",
            fix=f"It may name: {', '.join(sorted(known))}.",
            where=str(template),
        )


def check_metadata(card: str, licence: Licence | None = None) -> None:
    """Checks the block at the beginning of a card, which the Hub refuses only when everything has been sent.

    Args:
        card: The card.
        licence: That of the base model, which the card must name where its terms are passed on; None of a data set.

    Raises:
        UserError: The Hub would not take it.
    """
    fix = "Correct the card's template; it begins with ---, {{ card_data.to_yaml() }}, ---."
    try:
        data = (DatasetCard if licence is None else ModelCard)(card.strip()).data.to_dict()
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"The card's metadata cannot be read: {' '.join(str(error).split())}", fix=fix) from None
    for key in _LISTS:
        words = data.get(key)
        if not isinstance(words, str | None) and not (
            isinstance(words, list) and all(isinstance(w, str) for w in words)
        ):
            raise UserError(f"The card's metadata has {key}: {words!r}, which are no words.", fix=fix)
    named = data.get("license")
    if any(one not in IDENTIFIERS for one in (named if isinstance(named, list) else [named] if named else [])):
        raise UserError(f"The card's metadata has license: {named!r}, which the Hub does not know.", fix=fix)
    if licence is not None and licence.notice is not None and named != licence.identifier:
        raise UserError(
            f"The card's metadata has license: {named!r}, but the base model is under {licence.identifier}.",
            why=licence.notice,
            fix=fix,
        )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    return environment


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The template {template} cannot be read: {error}.", fix="Correct --template.") from None


def _syntax_error(template: Path, error: jinja2.TemplateSyntaxError) -> UserError:
    return UserError(f"The template has a mistake: {error.message}.", where=f"{template}:{error.lineno}")


def _line(error: Exception) -> int:
    """Returns the template's line that an error comes from; Jinja puts it into the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return (frames[-1].lineno or 1) if frames else 1


def _cell(text: Any) -> str:
    """Returns a text that does not end a table's cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")
