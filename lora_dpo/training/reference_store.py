"""Reference log-probs on disk: a folder of whole, immutable files, which any number of processes write and read."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from lora_dpo.console import note
from lora_dpo.errors import UserError
from lora_dpo.files import write_whole
from lora_dpo.training.reference_policy import ReferencePolicy
from lora_dpo.tree.forest import Index
from lora_dpo.tree.ragged import Ragged
from lora_dpo.tree.sequences import KEY

_MANY_FILES = 32
_LISTINGS = 3
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Log-probs of sequences.

    Attributes:
        keys: The sequences' keys, in order and each once, shape (S,).
        values: For each sequence its sum, or the values of its scored tokens.
    """

    keys: NDArray[np.bytes_]
    values: Ragged

    @classmethod
    def merged(cls, parts: Sequence[Entries]) -> Entries:
        """Returns the entries of all parts; of two with one key, that of the earlier part."""
        if not parts:
            return cls(np.empty(0, KEY), Ragged.zeros([]))
        keys, first = np.unique(np.concatenate([part.keys for part in parts]), return_index=True)
        return cls(keys, Ragged.joined([part.values for part in parts]).take(first))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: NDArray[np.bytes_]) -> Index:
        """Returns the place of each key, -1 where it is not among these."""
        if not len(self):
            return np.full(len(keys), -1)
        places = np.searchsorted(self.keys, keys).clip(max=len(self) - 1)
        return np.where(self.keys[places] == keys, places, -1)


class ReferenceStore:
    """The entries of one reference policy.

    Locks cannot be relied on where clusters keep their files, so there are none. A writer puts a whole file beside the
    others, under the hash of its content. A reader takes the union of all files; it does not matter if one entry is in
    several. A file that is not what its name says is put aside, and its entries are computed again.

    Args:
        root: Folder of all policies.
        policy: The reference policy.
        per_token: Whether an entry has a value for each scored token, rather than their sum.
    """

    def __init__(self, root: Path, policy: ReferencePolicy, *, per_token: bool) -> None:
        self.folder = root / policy.key[:32]
        self._policy = policy
        self._files = self.folder / ("tokens" if per_token else "sums")

    def read(self) -> Entries:
        """Returns all entries; where they lie in many files, these become one.

        Raises:
            UserError: The files may not be read.
        """
        with self._accessible("read"):
            parts = self._parts()
        entries = Entries.merged(list(parts.values()))
        if len(parts) > _MANY_FILES:
            with suppress(OSError):  # a reader that may not write has nothing to tidy up
                merged = self._write(entries)
                for file in parts.keys() - {merged}:  # only once what they hold is elsewhere
                    file.unlink(missing_ok=True)
        return entries

    def write(self, entries: Entries) -> None:
        """Adds entries, in a file of their own; numbers that are not finite are nothing to keep.

        Raises:
            UserError: The file cannot be written.
        """
        kept = entries.values.finite()
        if len(kept):
            with self._accessible("written"):
                self._write(Entries(entries.keys[kept], entries.values.take(kept)))

    def describe(self) -> None:
        """Writes what the policy is, for people, into a file that nothing reads.

        Raises:
            UserError: It cannot be written, and nor could entries.
        """
        with self._accessible("written"):
            write_whole(
                self.folder / "policy.json", json.dumps(self._policy.parts, indent=2).encode() + b"\n", shared=True
            )

    def _parts(self) -> dict[Path, Entries]:
        parts: dict[Path, Entries] = {}
        for _ in range(_LISTINGS):  # a file that is gone is in a new one, which another process has made of many
            gone = False
            for file in sorted(self._files.glob("*.safetensors")):
                if file in parts:
                    continue
                try:
                    content = file.read_bytes()
                except FileNotFoundError:
                    gone = True
                    continue
                if hashlib.sha256(content).hexdigest() == file.stem:
                    parts[file] = _parsed(content)
                else:
                    _put_aside(file)
            if not gone:
                break
        return parts

    def _write(self, entries: Entries) -> Path:
        keys = np.frombuffer(entries.keys.tobytes(), np.uint8).reshape(len(entries), -1)
        content = save({"keys": keys, "values": entries.values.values, "lengths": entries.values.lengths})
        file = self._files / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(file, content, shared=True)
        return file

    @contextmanager
    def _accessible(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            raise UserError(
                f"The cache of reference log-probs {self.folder} cannot be {verb}: {error.strerror or error}",
                fix="Set LORA_DPO_CACHE to a folder that you may write to, or use dpo.reference=live.",
            ) from error


def _parsed(content: bytes) -> Entries:
    parts = load(content)
    keys = np.frombuffer(parts["keys"].tobytes(), KEY)
    return Entries(keys, Ragged(parts["values"], parts["lengths"]))


def _put_aside(file: Path) -> None:
    note(f"The file {file} of reference log-probs is damaged; what it held is computed again.")
    with suppress(OSError):  # where it may not be renamed, the next run says so again
        file.rename(file.with_suffix(".damaged"))
