"""The sides on which earlier runs had their questions: one that was learnt, or held out, is so for ever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_dpo.data.manifest import read_data
from lora_dpo.data.pair import Asked, group_of
from lora_dpo.errors import UserError
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import SplitName


def kept_sides(like: str | None, asked: Iterable[Asked]) -> dict[str, SplitName]:
    """Returns the side of each group that `data.split.like`, or a run that was divided like it, has had.

    Args:
        like: The recipe's key: the folder of a run, or None.
        asked: What is to be divided.

    Raises:
        UserError: There is no such run, or it has no data.
    """
    sides = _sides(like)
    found: dict[str, SplitName] = {}
    for one in asked:
        side = sides.get(group_of(one.prompt))
        # Questions of one group that were on two sides are held out.
        if side is not None and (one.group not in found or found[one.group] == "train"):
            found[one.group] = side
    return found


def _sides(like: str | None) -> dict[str, SplitName]:
    """Returns the side of each prompt, by `group_of`; the newest run is right about it."""
    sides: dict[str, SplitName] = {}
    seen: set[Path] = set()
    while like is not None and (path := Path(like).expanduser()).resolve() not in seen:
        seen.add(path.resolve())
        try:
            run = RunFolder.open(path)
        except UserError as error:
            raise UserError(f"data.split.like is {like}. {error.what}", why=error.why, fix=error.fix) from None
        for side, data in read_data(run.data).items():
            for one in data:
                sides.setdefault(group_of(one.prompt), side)
        like = run.load_recipe().data.split.like
    return sides
