"""`lora-dpo merge`: adapters and base to one model, shard by shard, then compared with what it was made of."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_dpo.console import note
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.files import remove, write_json
from lora_dpo.memory import give_large_blocks_back, memory_bytes
from lora_dpo.merging.agreement import Agreement, compare
from lora_dpo.merging.folder import check_free, check_room, copy_companions, shards_of, write_config, written_aside
from lora_dpo.merging.ingredients import Ingredients, Onto, open_ingredients
from lora_dpo.merging.probes import Probes, find_probes
from lora_dpo.merging.sources import Source, check_stack, find_sources
from lora_dpo.merging.tokens import Tokens, choose_tokenizer
from lora_dpo.merging.verdict import judge
from lora_dpo.merging.writing import Written, write_weights
from lora_dpo.model.base import load_config, load_tokenizer, resolve
from lora_dpo.model.hashes import config_hash, hash_over
from lora_dpo.model.lineage import check_files, check_whole, identify, tokenizer_hash
from lora_dpo.model.location import local_copy
from lora_dpo.model.record import write_record
from lora_dpo.model.shards import rewritten_bytes
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.training.provenance import versions

REPORT = "merge_report.json"
_BASE_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "NOTICE*")
"""What lies beside a base's weights."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be merged.

    Attributes:
        sources: Runs and adapters, in order.
        output: Where the model goes.
        dtype: Precision of its weights, such as `bfloat16`; None leaves each in the base's.
        onto: What the adapters are merged into; None measures, where they were trained on 4 bits.
        base: The base model, if it is not where the adapters say.
        overrides: `model.KEY=VALUE` words: how the base is loaded.
    """

    sources: Sequence[str]
    output: Path
    dtype: str | None = None
    onto: Onto | None = None
    base: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What goes into a merged model, found and checked.

    Attributes:
        sources: The adapters.
        identity: What the base is known by.
        base: The base model; its name is a local folder.
        shards: Its weights' files.
        tokens: The tokenizer.
        quantised_from: The precision in which the base was taken to 4 bits for training; None where it was not.
    """

    sources: list[Source]
    identity: dict[str, Any]
    base: ModelSection
    shards: list[Path]
    tokens: Tokens
    quantised_from: torch.dtype | None


def merge(request: Request) -> dict[str, Any]:
    """Merges adapters into their base, and verifies the result.

    Args:
        request: What is to be merged.

    Returns:
        The content of merge_report.json.

    Raises:
        UserError: Something is missing, damaged or does not belong together, or the merged model is not the one that
            was trained. Nothing is kept then.
    """
    began = time.monotonic()
    give_large_blocks_back()
    check_free(request.output)
    parts = _collect(request)
    dtype = None if request.dtype is None else getattr(torch, request.dtype)
    with written_aside(request.output) as folder:
        check_room(folder, sum(rewritten_bytes(shard, dtype) for shard in parts.shards))
        scratch, base = folder / ".scratch", parts.base
        adapters = [source.folder for source in parts.sources]
        ingredients = open_ingredients(base, adapters, scratch, quantised_from=parts.quantised_from)
        encoder = TurnEncoder(parts.tokens.tokenizer, base.template)
        probes = find_probes(parts.sources[-1].run, encoder, _positions(base))
        onto, distances = _choose(ingredients, request.onto, dtype, probes)
        note(f"Merging {' and '.join(request.sources)} into {parts.identity['name']}.")
        written = write_weights(ingredients, onto, parts.shards, folder, dtype)
        copy_companions(Path(base.name), folder, parts.tokens.folder, same_tokens=parts.tokens.same)
        merged_after = time.monotonic() - began
        note(f"Comparing with base and adapters on {len(probes.sequences)} questions of {probes.source}.")
        verdict = judge(
            partial(ingredients.trained, onto),
            ingredients.reloaded(folder),
            partial(ingredients.untrained, onto),
            probes,
            encoder,
            dtype or ingredients.coarsest(onto),
        )
        verdict.check()
        record = _record(parts, onto, verdict.dtype, written, _tokenizer_of(folder, base, scratch / "tokenizer"))
        report = {
            "schema_version": 1,
            "base": {key: parts.identity[key] for key in ("name", "revision", "weights_sha256")},
            "adapters": [{key: part[key] for key in ("name", "weights_sha256")} for part in record["adapters"]],
            "onto": onto,
            "distances": {name: asdict(found) for name, found in distances.items()},
            **verdict.as_json(),
            "probes": {"source": probes.source, "questions": len(probes.sequences), "tokens": probes.tokens},
            "tensors": {"changed": written.changed, "copied": written.copied},
            "files": written.files,
            "peak_bytes": memory_bytes("VmHWM"),
            "seconds": round(time.monotonic() - began, 1),
            "seconds_merging": round(merged_after, 1),
        }
        remove(scratch)
        write_json(folder / REPORT, report)
        write_record(folder, record)
        write_config(Path(base.name), folder, request.dtype)
    return report


def _collect(request: Request) -> _Parts:
    sources, named = find_sources(request.sources, request.base, request.overrides)
    tokenizer = load_tokenizer(named)
    identity = identify(named, tokenizer)
    check_stack(sources, identity)
    place = resolve(named)
    folder = Path(place) if Path(place).is_dir() else local_copy(place, identity["revision"], _BASE_FILES)
    if identity["provenance"] is not None:
        check_whole(named.name, folder, identity["provenance"], tokenizer)
    shards = shards_of(folder, named.name)
    check_files(named.name, shards)
    base = named.model_copy(update={"name": str(folder), "revision": None})
    return _Parts(
        sources=sources,
        identity=identity,
        base=base,
        shards=shards,
        tokens=choose_tokenizer(base, [source.folder for source in sources], tokenizer, _rows(base)),
        quantised_from=_quantised_from(sources, request.onto),
    )


def _rows(base: ModelSection) -> int:
    return load_config(base.name, base).get_text_config().vocab_size


def _positions(base: ModelSection) -> int | None:
    return getattr(load_config(base.name, base).get_text_config(), "max_position_embeddings", None)


def _quantised_from(sources: Sequence[Source], onto: Onto | None) -> torch.dtype | None:
    """Returns the precision in which the base was taken to 4 bits for training; None where it was not."""
    found = {source.quantised_from for source in sources if source.record is not None}
    if len(found) > 1:
        raise UserError(
            "Some of the adapters were trained on 4-bit weights, and others were not, or from another precision.",
            why="So there is no base upon which all of them were trained.",
            fix="Merge the first ones, and train the next upon the result.",
        )
    if not found:  # made elsewhere: PEFT does not say in which precision the base was
        return torch.bfloat16 if onto == "quantized" else None
    (name,) = found
    if onto == "quantized" and name is None:
        raise UserError(
            "--onto quantized, but these adapters were trained on full-precision weights.",
            why="Merged into 4-bit ones they would be another model.",
            fix="Leave --onto out.",
        )
    return None if name is None else getattr(torch, name)


def _choose(
    ingredients: Ingredients, asked: Onto | None, dtype: torch.dtype | None, probes: Probes
) -> tuple[Onto, dict[Onto, Agreement]]:
    """Returns what to merge into, and how far from what was trained on 4 bits either way leads."""
    if ingredients.four_bit is None:
        return "full", {}
    note("Measuring which is nearer to what was trained: the full-precision base or the 4-bit one.")
    both: tuple[Onto, Onto] = ("full", "quantized")
    previews = {onto: ingredients.preview(onto, dtype) for onto in both}
    distances = compare(partial(ingredients.trained, "quantized"), previews, probes)
    return asked or min(both, key=lambda onto: distances[onto].kl_mean), distances


def _tokenizer_of(folder: Path, base: ModelSection, scratch: Path) -> str:
    """Returns the hash of the tokenizer as it will be read: beside a configuration, which the folder still lacks."""
    scratch.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, scratch / file.name)
    write_config(Path(base.name), scratch, None)
    return tokenizer_hash(load_tokenizer(base.model_copy(update={"name": str(scratch)})))


def _record(parts: _Parts, onto: Onto, dtype: torch.dtype, written: Written, tokenizer: str) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "stage": "merge",
        **versions(),
        "model": parts.identity,
        "adapters": [source.as_json() for source in parts.sources],
        "onto": onto,
        "dtype": str(dtype).removeprefix("torch."),
        "weights_sha256": hash_over(written.files),
        "config_sha256": config_hash(Path(parts.base.name)),
        "tokenizer_sha256": tokenizer,
    }
