"""`lora-dpo push-data`: preferences as a data set that trainers and the Hub's viewer read, with a card."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from huggingface_hub import DatasetCardData

from lora_dpo.credentials import load_token
from lora_dpo.data.groups import merge_groups
from lora_dpo.data.lint import lint
from lora_dpo.data.pair import Pair, group_of
from lora_dpo.data.sources import load_pairs
from lora_dpo.errors import UserError
from lora_dpo.hub.licences import check_identifier
from lora_dpo.hub.package import File, Package, with_manifest
from lora_dpo.hub.preflight import find_token
from lora_dpo.hub.push import Manner, send
from lora_dpo.hub.remote import Target
from lora_dpo.hub.secrets import check_nothing_private
from lora_dpo.hub.template import check_metadata, render
from lora_dpo.recipe.schema import DataSection

_TEMPLATE = Path(__file__).with_name("dataset.md.jinja")
_FILE = "data/train.jsonl"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def push_data(source: str, target: Target, licence: str | None, manner: Manner) -> None:
    """Publishes preferences.

    Args:
        source: File or folder with preferences, in any format that `data.path` takes.
        target: Where to.
        licence: The Hub's name of their licence; None leaves it open.
        manner: How far.

    Raises:
        UserError: They cannot be read or hold a secret, or the Hub refused.
    """
    load_token()
    target.check()
    send(target, pack_data(source, target.repo, licence, find_token()), manner)


def pack_data(source: str, repo: str, licence: str | None, token: str | None) -> Package:
    """Reads preferences, drops what teaches nothing, and writes them as every trainer reads them.

    Args:
        source: File or folder with preferences.
        repo: Where they go, for the card.
        licence: Their licence.
        token: The user's token, which must not be in them.

    Raises:
        UserError: They cannot be read, or hold a secret, or the Hub does not know the licence.
    """
    if licence is not None:
        check_identifier(licence)
    loaded = load_pairs(DataSection(path=source, pairs="all"))
    pairs, dropped = lint(merge_groups([pair for one in loaded.by_source for pair in one]))
    if not pairs:
        raise UserError(f"{source} holds no usable preference.", why=f"Dropped: {_counts(dropped)}.")
    own_groups = any(pair.group != group_of(pair.prompt) for pair in pairs)
    rows = [_row(pair, with_group=own_groups) for pair in pairs]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    card = render(_TEMPLATE, _values(pairs, rows[0], dropped, repo, licence))
    check_metadata(card)
    files = with_manifest([File.of(_FILE, lines.encode()), File.of("README.md", card.encode())])
    check_nothing_private(files, token)
    remarks = [f"{len(pairs):,} preferences of {len({pair.group for pair in pairs}):,} questions."]
    if dropped:
        remarks.append(f"Dropped: {_counts(dropped)}.")
    if licence is None:
        remarks.append("No licence is named, so others may not use them. Name one with --license.")
    return Package("dataset", files, remarks=remarks)


def _row(pair: Pair, *, with_group: bool) -> dict[str, Any]:
    """Returns a preference as conversations, the form that TRL calls explicit.

    `datasets` knows the columns by the first rows alone, so that all rows have a group or none has.
    """
    answers = {"chosen": pair.chosen, "rejected": pair.rejected}
    turns = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {"prompt": list(pair.prompt), **turns, **({"group": pair.group} if with_group else {})}


def _values(
    pairs: list[Pair], example: dict[str, Any], dropped: Counter[Any], repo: str, licence: str | None
) -> dict[str, Any]:
    name = repo.rpartition("/")[2]
    return {
        "card_data": DatasetCardData(
            license=licence,
            pretty_name=name,
            size_categories=next((label for size, label in _SIZES if len(pairs) < size), "n>1M"),
            task_categories=["text-generation"],
            tags=["preference", "dpo", "human-feedback", "lora-dpo"],
            configs=[{"config_name": "default", "data_files": [{"split": "train", "path": _FILE}]}],
        ),
        "name": name,
        "repo": repo,
        "pairs": len(pairs),
        "questions": len({pair.group for pair in pairs}),
        "dropped": _counts(dropped),
        "chosen_words": median(len(pair.chosen.split()) for pair in pairs),
        "rejected_words": median(len(pair.rejected.split()) for pair in pairs),
        "turns": max(len(pair.prompt) for pair in pairs),
        "example": json.dumps(example, ensure_ascii=False, indent=2),
    }


def _counts(dropped: Counter[Any]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())
