"""The Hub's client with what it lacks: timeouts, retries of every call, and errors in words, without the token.

Seen in huggingface_hub 2.4: no call but a download has a timeout, so a server that is dead is waited for without end;
some calls ask for none, whatever the session's is. Uploads are retried by the client, `create_repo`, `whoami`,
`create_tag` and the commit itself are not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from httpx2 import ConnectError, HTTPError, TimeoutException, TransportError
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from lora_dpo.console import note
from lora_dpo.errors import UserError

T = TypeVar("T")

TIMEOUT = "LORA_DPO_HUB_TIMEOUT"
"""Environment variable: seconds after which a Hub that says nothing counts as gone."""
_TIMEOUT_SECONDS = 60.0
_LONGEST_TIMEOUT_SECONDS = 86_400
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)
RETRIED_BY_THE_CLIENT = 2
"""How often calls are made that the client itself makes six times."""
_LONGEST_WAIT_SECONDS = 300
_SENDS_THROUGH_XET = "_upload_xet_files"
"""The client's function that does."""
_PASSING = (408, 422, 429, 500, 502, 503, 504)
"""Statuses that another try may mend; 422 is what the Hub says of a file that has changed on its way."""
_HINTS = {
    400: "The Hub does not take what it was sent.",
    401: "The Hub does not accept the token.",
    402: "The Hub wants a payment for this.",
    403: "The token may not do this.",
    404: "There is no such thing on the Hub, or this token may not see it.",
    409: "Something of this name is there already.",
    412: "Somebody else has changed the repository in the meantime.",
    413: "The Hub finds it too large.",
    429: "The Hub is asked too often.",
}


def timeout_seconds() -> float:
    """Returns how long a silent Hub is waited for.

    Raises:
        UserError: The variable does not hold a number of seconds.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text or _TIMEOUT_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise UserError(
            f"{TIMEOUT} is {text!r}, which is no number of seconds that could be waited.",
            fix=f"Set it to {_TIMEOUT_SECONDS:g}, and to no more than {_LONGEST_TIMEOUT_SECONDS}.",
        )
    return seconds


class HubError(UserError):
    """What the Hub has refused, or did not answer.

    Attributes:
        is_passing: Whether the same may succeed later, without anybody mending something.
    """

    is_passing = False


class _Impatient(httpx2.Client):
    """A session in which no call waits longer than the timeout, though some ask for no end."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Sends a request."""
        asked, longest = request.extensions.get("timeout", {}), self.timeout.as_dict()
        request.extensions["timeout"] = {
            part: seconds if asked.get(part) is None else min(asked[part], seconds) for part, seconds in longest.items()
        }
        return super().send(request, **options)


@contextmanager
def hub_session(token: str | None) -> Iterator[None]:
    """Makes all calls to the Hub in its block wait no longer than the timeout, and keeps secrets out of what is logged.

    Args:
        token: What must not be seen.
    """
    seconds, hooks = timeout_seconds(), get_session().event_hooks
    set_client_factory(lambda: _Impatient(event_hooks=hooks, follow_redirects=True, timeout=seconds))
    discreet = _Discreet(token)
    handlers = logging.getLogger("huggingface_hub").handlers + logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(discreet)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(discreet)
        set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def patiently(
    call: Callable[[], T],
    what: str,
    *,
    token: str | None,
    tries: int = len(WAITS_SECONDS) + 1,
    settled: Callable[[Exception], T | None] = lambda error: None,
) -> T:
    """Calls the Hub until it answers, as long as waiting may help.

    Args:
        call: What is called; it must do no harm if it is called again after an answer got lost.
        what: What is being done, for messages: `looking for the repository`.
        token: What no message may show.
        tries: How often at most.
        settled: Asked after an error; what it returns is the result, where the call has done its work all the same.

    Raises:
        HubError: The Hub refused, or did not answer for too long.
    """
    for number in range(tries):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            if not is_of_the_hub(error):
                raise
            if (found := settled(error)) is not None:
                return found
            wait = WAITS_SECONDS[min(number, len(WAITS_SECONDS) - 1)]
            asked = _retry_after(error)
            if not is_passing(error) or number == tries - 1 or (asked or 0) > _LONGEST_WAIT_SECONDS:
                said = explain(error, what, token)
                said.is_passing = is_passing(error)
                raise said from None
            note(f"{what}: {without_secrets(brief(error), token)}; once more in {asked or wait:g} s.")
            time.sleep(asked or wait)
    raise AssertionError("unreachable")


def is_of_the_hub(error: BaseException) -> bool:
    """Returns whether an exception is about the Hub or the way to it, however the client wrapped it."""
    hub = (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, json.JSONDecodeError)
    of_the_client = isinstance(error, ValueError) and "LFS batch API" in str(error)
    return of_the_client or is_of_xet(error) or any(isinstance(seen, hub) for seen in _chain(error))


def is_of_xet(error: BaseException) -> bool:
    """Returns whether an exception was raised while files were sent through Xet, whose errors are Python's own."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == _SENDS_THROUGH_XET for frame, _ in frames)


def is_passing(error: BaseException) -> bool:
    """Returns whether another try may succeed."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING
    return any(isinstance(seen, TransportError | json.JSONDecodeError) for seen in _chain(error))


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status behind an exception, if there was an answer at all."""
    for seen in _chain(error):
        response = getattr(seen, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def explain(error: BaseException, what: str, token: str | None) -> HubError:
    """Returns the error in words.

    Args:
        error: What the client raised.
        what: What was being done.
        token: What the message must not show.
    """
    chain, status, end = list(_chain(error)), status_of(error), constants.ENDPOINT
    if any(isinstance(seen, OfflineModeIsEnabled) for seen in chain):
        return offline_error()
    if is_of_xet(error):
        return HubError(
            f"{what}: {without_secrets(brief(error), token)}.",
            why=f"Large files go through Xet, which {end} may not have.",
            fix="Set HF_HUB_DISABLE_XET=1 to send them as LFS.",
        )
    if status is None and any(isinstance(seen, ConnectError) for seen in chain):
        return HubError(
            f"{what}: {end} cannot be reached.",
            fix="On a machine without a network use `lora-dpo push --prepare`, which `lora-dpo run` does with "
            "HF_HUB_OFFLINE=1, and on a login node `lora-dpo push --pending`.",
        )
    if status is None and any(isinstance(seen, TimeoutException) for seen in chain):
        return HubError(
            f"{what}: {end} said nothing for {timeout_seconds():g} s.",
            fix=f"Try again later, or wait longer with {TIMEOUT}=SECONDS. What has arrived is not sent again.",
        )
    hint = _HINTS.get(status or 0, "")
    if status is None or status >= 500:
        hint = "The Hub, or the way to it, has a fault. Try again later; what has arrived is not sent again."
    fixes = {
        401: "Make a new one with the role 'write' in the Hub's settings, and put it into .env as ACCESS_TOKEN.",
        403: "Use a token with the role 'write' for this namespace, or another repository.",
        412: "Look at what has changed there, then push again.",
        429: "Wait some minutes, then push again; what has arrived is not sent again.",
    }
    return HubError(f"{what}: {without_secrets(brief(error), token)}.", why=hint, fix=fixes.get(status or 0, ""))


def offline_error() -> HubError:
    """Returns the error for a push where the network is switched off."""
    return HubError(
        "HF_HUB_OFFLINE is set, so nothing can be published from here.",
        fix="Use `lora-dpo push --prepare` here, and `lora-dpo push --pending` where there is a network.",
    )


def brief(error: BaseException) -> str:
    """Returns in a few words what happened: a status with the server's own sentence, or the exception's."""
    status = status_of(error)
    last = list(_chain(error))[-1]
    if status is None:
        return _one_line(str(last)) or type(last).__name__
    for seen in _chain(error):
        if message := getattr(seen, "server_message", None):
            return f"{status}, {_one_line(message)}"
    return f"{status}"


def without_secrets(text: str, token: str | None) -> str:
    """Returns a text without the token, and without the signatures in addresses for uploads."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_...", text)
    return text.replace(token, "...") if token else text


class _Discreet(logging.Filter):
    """Takes secrets out of log lines."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage(), self._token), ()
        return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _retry_after(error: BaseException) -> float | None:
    """Returns the seconds that the Hub asks to wait, in either of the headers by which it may say so."""
    for seen in _chain(error):
        headers = getattr(getattr(seen, "response", None), "headers", {})
        text = headers.get("Retry-After", "")
        if text.isdigit():
            return float(text)
        limit = parse_ratelimit_headers(headers) if status_of(error) == 429 else None
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(".")
