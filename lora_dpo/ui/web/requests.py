"""What comes with a request, checked; and answers that come bit by bit."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lora_dpo.errors import UserError
from lora_dpo.inference.streaming import Writing

LARGEST_BODY_BYTES = 256 * 1024
LONGEST_TEXT = 40_000
"""Characters of one question or message."""

Values = Mapping[str, Any]

_log = logging.getLogger(__name__)


async def read_json(request: Request) -> dict[str, Any]:
    """Returns the object that a request carries.

    Raises:
        HTTPException: It is too large, or no JSON object.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY_BYTES:
            raise HTTPException(413, f"That is too much at once: more than {LARGEST_BODY_BYTES // 1024} KiB.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "A JSON object is expected.")
    return values


def text_of(values: Values, key: str, default: str | None = None, longest: int | None = LONGEST_TEXT) -> str:
    """Returns a text that a request carries.

    Args:
        values: What the request carries.
        key: The text's name.
        default: What a missing one is; None is a mistake.
        longest: The most characters; None is any number.

    Raises:
        UserError: It is missing, no text, or too long.
    """
    value = values.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"'{key}' is missing, or no text.")
    if longest is not None and len(value) > longest:
        raise UserError(f"'{key}' has {len(value):,} characters; at most {longest:,} are taken.")
    return value


def number_of(values: Values, key: str, default: float) -> float:
    """Returns a number that a request carries.

    Raises:
        UserError: It is none.
    """
    value = values.get(key, default)
    if not is_number(value):
        raise UserError(f"'{key}' is no number.")
    return float(value)


def is_number(value: Any) -> bool:
    """Returns whether a value that came as JSON is a finite number: Python reads NaN, and 1e999 as infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max and not math.isnan(value)


async def answered(work: Callable[[], Any]) -> Response:
    """Does something that takes its time in a thread of its own, and returns what it returns as JSON.

    Args:
        work: What is done.
    """
    return JSONResponse(await to_thread.run_sync(work, abandon_on_cancel=True))


def streamed(events: AsyncIterator[Values]) -> Response:
    """Returns an answer that is one JSON object a line, each sent as it comes; a mistake is the last one."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield _line(event)
        except UserError as error:
            yield _line({"error": str(error)})
        except Exception:  # a page that is only cut off would say that the server is gone
            _log.exception("an answer could not be written")
            yield _line({"error": "The answer could not be written; the server's terminal says why."})

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"x-accel-buffering": "no"})


def _line(event: Values) -> bytes:
    return json.dumps(event).encode() + b"\n"


async def pieces(writing: Writing) -> AsyncIterator[str]:
    """Yields an answer's text as it comes; where nobody listens any more, the writing ends."""
    iterator = iter(writing)
    try:
        while (piece := await to_thread.run_sync(next, iterator, None, abandon_on_cancel=True)) is not None:
            yield piece
    finally:
        writing.stop()


def mistake(request: Request, error: Exception) -> Response:
    """Returns a mistake as JSON."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 400)
