"""Whether a merged model is what a training made: which adapters are in it, by the hashes in its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def adapters_in(merged: Mapping[str, Any] | None) -> list[str | None]:
    """Returns the hashes of the adapters that are merged into a model, in order.

    Args:
        merged: What the model says of itself; None where it says nothing.
    """
    return [part.get("weights_sha256") for part in (merged or {}).get("adapters", [])]


def is_made_of(merged: Mapping[str, Any] | None, adapter: Mapping[str, Any] | None) -> bool:
    """Returns whether a merged model is what the training of an adapter ended with.

    That is the adapter on its own base. Where it was trained upon other adapters that were merged before, and all of
    them are merged into the first base in the same order, it is that model too.

    Args:
        merged: What the merged model says of itself.
        adapter: What the adapter says of itself.
    """
    own, inside = (adapter or {}).get("weights_sha256"), adapters_in(merged)
    if merged is None or adapter is None or own is None or not inside or inside[-1] != own:
        return False
    if len(inside) == 1:
        return True
    below = adapter.get("model", {}).get("provenance") or {}
    same_base = below.get("model", {}).get("weights_sha256") == merged.get("model", {}).get("weights_sha256")
    return below.get("stage") == "merge" and adapters_in(below) == inside[:-1] and same_base
