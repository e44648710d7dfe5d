"""What the tests do to a reference cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lora_dpo.model.cache import cache_folder
from lora_dpo.training.reference_policy import ReferencePolicy
from lora_dpo.training.reference_store import Entries, ReferenceStore
from lora_dpo.tree.ragged import Ragged


def rewrite_reference(change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Changes all sums of the only policy in the cache, in a file that is as sound as any; returns its folder."""
    (folder,) = (cache_folder() / "reference").iterdir()
    store = ReferenceStore(folder.parent, ReferencePolicy({}), per_token=False)
    store.folder, store._files = folder, folder / "sums"
    entries = store.read()
    for file in store._files.iterdir():
        file.unlink()
    changed = change(entries.values.values).astype(np.float32)
    store.write(Entries(entries.keys, Ragged(changed, entries.values.lengths)))
    return folder
