"""Divides pairs into train, validation and test by question, the same way everywhere and always."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast, get_args

from lora_dpo.data.pair import Asked
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Source, Split, SplitName

T = TypeVar("T", bound=Asked)

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
"""The splits' names, in the order in which they are shown: train, validation, test."""

_HELD_OUT: tuple[SplitName, ...] = ("validation", "test")

# A question on two sides stays on the first of these.
_PRECEDENCE: tuple[SplitName, ...] = ("test", "validation", "train")


@dataclass(frozen=True, slots=True)
class Splits(Generic[T]):
    """The pairs (or examples) of each split, and what was left out to make them.

    Args:
        pairs: Pairs by the split's name; every name is there. Within a split the order of the sources is kept.
        dropped: Pairs left out, by reason: `limit` (data.limit), `overlap` (their question is held out).
    """

    pairs: dict[SplitName, list[T]]
    dropped: Counter[str] = field(default_factory=Counter)


def split_by_group(
    pairs_by_source: Sequence[Sequence[T]],
    sources: Sequence[Source],
    split: Split,
    limit: int | None = None,
    *,
    held_out: Mapping[str, SplitName] | None = None,
    trains: bool = True,
    kept: Mapping[str, SplitName] | None = None,
) -> Splits[T]:
    """Divides pairs, or examples, so that every group is on exactly one side.

    Groups are ordered by a hash of seed and group id: the first part is test, the next validation, the rest train. So
    the result depends neither on the order of rows nor on the number of processes. With folds the order is cut into
    parts whose sizes differ by one at most, so that every group is in the test split of exactly one fold; validation is
    the first of what is left, so that most folds look at the same questions while they train. Sources with a `use` of
    their own go there as a whole; a group that two sources put on different sides stays held out, and its other pairs
    are dropped.

    Args:
        pairs_by_source: The pairs of each source.
        sources: The sources, with their `use` and `weight`.
        split: Fractions of groups or the fold, and the seed.
        limit: About how many pairs to keep in all, by whole groups; None keeps all.
        held_out: Groups that something else holds out already, and on which side.
        trains: Whether there is to be a train split, whatever the sources are for.
        kept: Groups that an earlier run had, and on which side: of those that are divided, they stay there.

    Raises:
        UserError: The train split, a split that is asked for, or a fold would be empty.
    """
    uses = [source.use for source in sources]
    limited = _limited(pairs_by_source, uses, split.seed, limit)
    known = {pair.group for pairs in limited for pair in pairs}
    held = {group: side for group, side in (held_out or {}).items() if group in known}
    wanted = _wanted_sides(limited, uses, split, held, kept or {})
    final = _final_sides([*wanted, held])
    result: dict[SplitName, list[T]] = {name: [] for name in SPLITS}
    used = 0
    for source, pairs, side_of in zip(sources, limited, wanted, strict=True):
        own = [pair for pair in pairs if side_of[pair.group] == final[pair.group]]
        used += len(own)
        training = [pair for pair in own if final[pair.group] == "train"]
        result["train"] += _weighted(training, source.weight, split.seed)
        for name in _HELD_OUT:
            result[name] += [pair for pair in own if final[pair.group] == name]
    _refuse_empty(result, uses, split, groups=len(final), limit=limit, trains=trains)
    dropped = Counter(limit=_count(pairs_by_source) - _count(limited), overlap=_count(limited) - used)
    return Splits(result, +dropped)


def overlap(splits: Mapping[SplitName, Iterable[Asked]]) -> int:
    """Returns how many groups are in more than one split; 0 unless something went wrong."""
    sides: Counter[str] = Counter()
    for pairs in splits.values():
        sides.update({pair.group for pair in pairs})
    return sum(count > 1 for count in sides.values())


def _limited(
    pairs_by_source: Sequence[Sequence[T]], uses: Sequence[str], seed: int, limit: int | None
) -> list[list[T]]:
    """Keeps about `limit` pairs, of every kind of use its share, so that no split runs dry."""
    total = _count(pairs_by_source)
    if limit is None or limit >= total:
        return [list(pairs) for pairs in pairs_by_source]
    kept: dict[str, set[str]] = {}
    for use in set(uses):
        sizes = Counter(p.group for pairs, u in zip(pairs_by_source, uses, strict=True) if u == use for p in pairs)
        share = limit * sizes.total() / total
        taken, kept[use] = 0, set()
        for group in _in_hash_order(sizes, seed):
            if taken >= share:
                break
            taken += sizes[group]
            kept[use].add(group)
    return [[p for p in pairs if p.group in kept[use]] for pairs, use in zip(pairs_by_source, uses, strict=True)]


def _wanted_sides(
    pairs_by_source: Sequence[Sequence[Asked]],
    uses: Sequence[str],
    split: Split,
    held: Mapping[str, SplitName],
    kept: Mapping[str, SplitName],
) -> list[dict[str, SplitName]]:
    """Returns, for each source, the side on which it puts each of its groups."""
    groups = [{pair.group for pair in pairs} for pairs in pairs_by_source]
    divided = _divide(set().union(*(own for own, use in zip(groups, uses, strict=True) if use == "auto")), split, kept)
    final = _final_sides([divided, held])
    return [
        {group: final[group] if use == "auto" else use for group in own} for own, use in zip(groups, uses, strict=True)
    ]


def _divide(groups: set[str], split: Split, kept: Mapping[str, SplitName]) -> dict[str, SplitName]:
    """Returns the side of each group, by the fractions or by the fold; those that are kept stay where they are."""
    ordered = _in_hash_order(groups, split.seed)
    if kept:
        return _filled_up(ordered, split, kept)
    start, stop, validation = _fractions(len(ordered), split) if split.folds is None else _fold(len(ordered), split)
    sides: dict[str, SplitName] = dict.fromkeys(ordered, "train")
    sides |= dict.fromkeys(ordered[start:stop], "test")
    sides |= dict.fromkeys((ordered[:start] + ordered[stop:])[:validation], "validation")
    return sides


def _filled_up(ordered: Sequence[str], split: Split, kept: Mapping[str, SplitName]) -> dict[str, SplitName]:
    """Returns the side of each group: new ones fill up the held-out parts, the rest of them is trained on."""
    _, test, validation = _fractions(len(ordered), split)
    sides = {group: kept[group] for group in ordered if group in kept}
    have = Counter(sides.values())
    new = [group for group in ordered if group not in kept]
    for side, size in (("test", test), ("validation", validation)):
        taken, new = new[: max(0, size - have[side])], new[max(0, size - have[side]) :]
        sides |= dict.fromkeys(taken, side)
    return sides | dict.fromkeys(new, "train")


def _fractions(count: int, split: Split) -> tuple[int, int, int]:
    """Returns where the test split begins and ends in `count` ordered groups, and how many others are validation's."""
    test, validation = _part(split.test, count), _part(split.validation, count)
    while test + validation >= count and max(test, validation) > 1:
        test, validation = (test - 1, validation) if test >= validation else (test, validation - 1)
    return 0, test, validation


def _fold(count: int, split: Split) -> tuple[int, int, int]:
    """Returns the same as `_fractions` for one of several folds."""
    folds, number = cast(int, split.folds), cast(int, split.fold) - 1
    if count < folds:
        raise UserError(
            f"data.split.folds is {folds}, but there are only {count} questions to divide",
            why="Each fold needs one. Sources with a 'use' of their own are not divided.",
            fix="Take fewer folds, add questions, or raise data.limit.",
            where="data.split",
        )
    start, stop = number * count // folds, (number + 1) * count // folds
    return start, stop, min(_part(split.validation, count), max(1, count - (stop - start) - 1))


def _part(fraction: float, count: int) -> int:
    """Returns how many of `count` groups a fraction is; above 0 it is at least one."""
    return max(1, math.floor(fraction * count + 0.5)) if fraction > 0 else 0


def _final_sides(wanted: Iterable[Mapping[str, SplitName]]) -> dict[str, SplitName]:
    """Returns the one side of each group: where sources disagree, held out."""
    sides: dict[str, set[SplitName]] = defaultdict(set)
    for side_of in wanted:
        for group, side in side_of.items():
            sides[group].add(side)
    return {group: next(name for name in _PRECEDENCE if name in found) for group, found in sides.items()}


def _weighted(pairs: list[T], weight: float, seed: int) -> list[T]:
    """Repeats training pairs by the whole part of the weight, and adds the rest as a seeded part of their groups."""
    whole, part = int(weight), weight - int(weight)
    groups = {pair.group for pair in pairs}
    size = max(math.floor(part * len(groups) + 0.5), whole == 0)
    # A salt of its own, so that the part is not the same one that borders on the validation split.
    drawn = set(_in_hash_order(groups, f"weight:{seed}")[:size])
    return pairs * whole + [pair for pair in pairs if pair.group in drawn]


def _in_hash_order(groups: Iterable[str], seed: object) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def _count(pairs_by_source: Iterable[Sequence[Asked]]) -> int:
    return sum(map(len, pairs_by_source))


def _refuse_empty(
    result: Mapping[SplitName, Sequence[Asked]],
    uses: Sequence[str],
    split: Split,
    *,
    groups: int,
    limit: int | None,
    trains: bool,
) -> None:
    needed: set[str] = {*(["train"] if trains else []), *uses} - {"auto"}
    if "auto" in uses:
        asked_for = {"test": split.test or split.folds, "validation": split.validation}
        needed |= {name for name, part in asked_for.items() if part}
    empty = [name for name in SPLITS if name in needed and not result[name]]
    if not empty:
        return
    counts = ", ".join(f"{name} {len(result[name])}" for name in SPLITS)
    test = f"data.split.test {split.test:g}" if split.folds is None else f"fold {split.fold} of {split.folds}"
    fixes = ["Add questions"]
    fixes += [f"raise data.limit (now {limit})"] if limit is not None else []
    free = "data.split.validation" if split.folds else "data.split.test or data.split.validation"
    fixes += [f"set {free} to 0"] if "auto" in uses else []
    fixes += ["change the 'use' of a source"] if set(uses) != {"auto"} else []
    raise UserError(
        f"the {' and the '.join(empty)} split would be empty",
        why=f"There are {groups} questions (groups), which are never divided; {test}, data.split.validation "
        f"{split.validation:g}. Pairs: {counts}.",
        fix=f"{', or '.join(fixes)}.",
        where="data.split",
    )
