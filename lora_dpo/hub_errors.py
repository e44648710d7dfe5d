"""A Hub that cannot be reached, and what its errors mean in words: offline, gated, unknown, no such revision."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from lora_dpo.errors import UserError

_PROBE_SECONDS = 5.0


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Goes straight to the local cache if the Hub does not answer.

    The Hub's client would retry for half a minute a file, for files in the cache as well.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


@cache
def _answers(endpoint: str) -> bool:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError) as error:
        # A certificate that only the Hub client's own store knows is still an answer.
        return isinstance(getattr(error, "reason", None), ssl.SSLError)


def explain_hub_error(error: BaseException, name: str) -> UserError | None:
    """Returns the `UserError` for a model that could not be fetched, or None if the error is another one.

    Args:
        error: What a library raised; its causes are looked at too.
        name: The Hub id that was asked for.
    """
    from httpx2 import HTTPError
    from huggingface_hub import errors

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.GatedRepoError):
            return UserError(
                f"The model {name} is gated, and this token may not read it.",
                fix="Accept its licence on its Hub page, and put your token into .env as ACCESS_TOKEN.",
            )
        if isinstance(seen, errors.RevisionNotFoundError):
            return UserError(f"The model {name} has no such revision on the Hub.", fix="Correct the revision.")
        if isinstance(seen, errors.RepositoryNotFoundError):
            return UserError(
                f"There is no model {name} on the Hub, or it is private.",
                fix="Correct the name; for a private one put your token into .env as ACCESS_TOKEN.",
            )
        offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, HTTPError, ConnectionError)
        if isinstance(seen, offline):
            return UserError(
                f"The model {name} is not in the local cache, and the Hub cannot be reached.",
                why="It is no local path either.",
                fix=f"On a machine with network run `hf download {name}`, then start again with HF_HUB_OFFLINE=1.",
            )
        seen = seen.__cause__ or seen.__context__
    return None
