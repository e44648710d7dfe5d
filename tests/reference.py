"""What the tests look up and change in a reference cache on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lora_dpo.training.reference_policy import ReferencePolicy
from lora_dpo.training.reference_store import Entries, ReferenceStore
from lora_dpo.tree.ragged import Ragged


def only_store(cache: Path) -> ReferenceStore:
    """Returns the store of the only policy in a cache."""
    (folder,) = (cache / "reference").iterdir()
    policy = ReferencePolicy(json.loads((folder / "policy.json").read_text()))
    store = ReferenceStore(folder.parent, policy, per_token=False)
    assert store.folder == folder
    return store


def rewrite_sums(cache: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Changes all sums of the only policy in a cache, in a file as sound as any; returns the policy's folder."""
    store = only_store(cache)
    entries = store.read()
    for file in store.folder.glob("sums/*"):
        file.unlink()
    changed = change(entries.values.values).astype(np.float32)
    store.write(Entries(entries.keys, Ragged(changed, entries.values.lengths)))
    return store.folder
