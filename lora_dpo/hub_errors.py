"""A Hub that cannot be reached, and what its errors mean in words: offline, gated, unknown, no such revision."""

from __future__ import annotations

import ssl
import sys
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

    The Hub's client would retry for half a minute a file, for files in the cache as well, and some of its calls have
    no timeout at all.
    """
    from huggingface_hub import constants

    # `datasets` copies the switch when it is imported.
    switches = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    if any(before) or _answers(constants.ENDPOINT):
        yield
        return
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def hub_is_offline() -> bool:
    """Returns whether only the local cache can be asked."""
    from huggingface_hub import constants

    with offline_unless_reachable():
        return constants.HF_HUB_OFFLINE


@cache
def _answers(endpoint: str) -> bool:
    """Returns whether a server answers at all; proxies are used as the environment says."""
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
        if isinstance(seen, errors.HfHubHTTPError) and not isinstance(seen, errors.EntryNotFoundError):
            return UserError(f"The Hub refused the model {name}: {str(seen).splitlines()[0]}", fix="Try again later.")
        offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, HTTPError, ConnectionError)
        if isinstance(seen, offline):
            return not_in_cache(name)
        seen = seen.__cause__ or seen.__context__
    return None


def not_in_cache(name: str) -> UserError:
    """Returns the `UserError` for what is not here and cannot be fetched.

    Args:
        name: The Hub id that was asked for.
    """
    return UserError(
        f"The model {name} is not in the local cache, and the Hub cannot be reached.",
        why="It is no local path either.",
        fix=f"On a machine with network run `hf download {name}`, then start again with HF_HUB_OFFLINE=1.",
    )
