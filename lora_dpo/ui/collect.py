"""What `lora-dpo collect` does: puts a store, questions and two sides together, and lets a person vote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lora_dpo.console import note, out
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import Found, find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.model.base import resolve
from lora_dpo.model.hashes import weights_hash
from lora_dpo.model.precision import choose_dtype
from lora_dpo.recipe.schema import ModelSection
from lora_dpo.ui.desk import Desk
from lora_dpo.ui.drafting import Drafter, names
from lora_dpo.ui.keys import has_keyboard
from lora_dpo.ui.lines import Line
from lora_dpo.ui.questions import read_questions
from lora_dpo.ui.sides import Side, check_can_differ
from lora_dpo.ui.statistics import summary
from lora_dpo.ui.store import Store, check_annotator


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        questions: File with the questions; None takes those that come with lora-dpo.
        model: What writes the answers: run, adapter, model or Hub id.
        output: The store.
        adapter: An adapter on `model`, which is then its base.
        other_model: What writes the other answer, if not the same.
        other_adapter: An adapter on `other_model`, or on `model`.
        overrides: `model.KEY=VALUE` words.
        sampling: How both write; its seed is set.
        system: A system turn for questions that have none, or the empty text.
        annotator: Who votes; None is the name of the user.
        votes: How many people are to judge each pair.
    """

    questions: str | None
    model: str
    output: Path
    sampling: Sampling
    adapter: str | None = None
    other_model: str | None = None
    other_adapter: str | None = None
    overrides: Sequence[str] = ()
    system: str = ""
    annotator: str | None = None
    votes: int = 1


def collect(request: Request) -> None:
    """Lets a person vote in this terminal; see `Request`.

    Raises:
        UserError: There is no terminal, or the questions, the models or the store cannot be used.
    """
    if not has_keyboard():
        raise UserError(
            "There is no terminal to vote in: stdin or stdout is not one.",
            fix="Start it in a terminal (in tmux or over `ssh -t` as well), or in a browser: --web.",
        )
    annotator = request.annotator or default_annotator()
    check_annotator(annotator)
    desk = make_desk(request)
    from lora_dpo.ui.terminal import CollectTerminal

    with desk.open(annotator):
        try:
            CollectTerminal(desk, annotator).run()
        except KeyboardInterrupt:
            out.print()
    print_end(desk)
    progress = desk.progress(annotator)
    if not progress.is_complete:
        out.print(f"{progress.total - progress.done} questions are left; the same command goes on.", style="dim")


def make_desk(request: Request) -> Desk:
    """Returns a desk with its models loaded.

    Raises:
        UserError: The questions, the models or the store cannot be used.
    """
    store = Store(request.output)
    questions = read_questions(request.questions, key="QUESTIONS", system=request.system)
    sides = sides_of(request)
    check_can_differ(sides)
    for side in dict.fromkeys(side.model for side in sides):
        side.load()
    drafter = Drafter(sides, request.sampling.seed or 0)
    note(f"{len(questions)} questions, answered by {names(sides)}. Votes go to {store.path}.")
    return Desk(questions, store, drafter, request.votes)


def default_annotator() -> str:
    """Returns the name of whoever sits here."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "annotator"


def print_summary(path: Path, *, as_json: bool) -> None:
    """Prints what a store holds: counts, agreement, and what should be looked at.

    Args:
        path: The store.
        as_json: Whether to print it for machines.

    Raises:
        UserError: There is no such store.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.", fix="Give the file that preferences were collected in: -o FILE.")
    votes = Store(path).votes()
    if as_json:
        out.print_json(json.dumps(summary(votes)))
    else:
        _print_counts(votes, path)


def _print_counts(votes: Sequence[Line], path: Path) -> None:
    found = summary(votes)
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_row("votes", f"{found['votes']}, of {_counts(found['annotators'])}" if votes else "0")
    table.add_row("preferences", f"{found['preferences']}, {found['edited']} of them edited")
    table.add_row("choices", _counts(found["choices"]) or "none")
    if found["wins"]:
        table.add_row("preferred", _counts(found["wins"]))
    if found["judged_by_several"]:
        table.add_row("judged by several", f"{found['judged_by_several']} pairs; Fleiss' kappa {_kappa(found)}")
    for one in found["agreement"]:
        kappa = _number(one["cohen_kappa"])
        who = " and ".join(one["annotators"])
        table.add_row(who, f"{one['observed']:.0%} of {one['pairs']} pairs alike; Cohen's kappa {kappa}")
    if found["instant"]:
        table.add_row("too fast to have been read", str(len(found["instant"])))
    if found["contradictory"]:
        table.add_row("contradictory pairs", f"{len(found['contradictory'])}; `lora-dpo data` drops them")
    out.print(table)


def print_end(desk: Desk) -> None:
    """Prints what was collected, and what to do with it."""
    path = desk.store.path
    _print_counts(desk.store.votes(), path)
    out.print(f"Train on them: lora-dpo dpo RECIPE data.path={path} adapter.init_from=auto", style="dim", markup=False)


def sides_of(request: Request) -> tuple[Side, Side]:
    """Returns what writes the two answers; weights that both have are loaded once.

    Raises:
        UserError: A model cannot be found or read.
    """
    one = other = _found(request.model, request.adapter, request.overrides)
    if request.other_model is not None or request.other_adapter is not None:
        other = _found(request.other_model or request.model, request.other_adapter, request.overrides)
    if _is_base_of(one, other):
        model = ChatModel(other)
        return Side(model, request.sampling, base=True), Side(model, request.sampling)
    model = ChatModel(one)
    if _is_base_of(other, one):
        return Side(model, request.sampling), Side(model, request.sampling, base=True)
    return Side(model, request.sampling), Side(model if other == one else ChatModel(other), request.sampling)


def _is_base_of(plain: Found, tuned: Found) -> bool:
    """Returns whether a model is the other one with its adapter off, so that it need not be loaded beside it."""
    if plain.is_adapter or not tuned.is_adapter or tuned.four_bit or _reading(plain.model) != _reading(tuned.model):
        return False
    one, other = (weights_hash(resolve(found.model), found.model.revision) for found in (plain, tuned))
    return one is not None and one == other


def _reading(model: ModelSection) -> ModelSection:
    """Returns how a model is loaded, wherever it is."""
    dtype = str(choose_dtype(model.dtype)).removeprefix("torch.")
    return model.model_copy(update={"name": "", "revision": None, "dtype": dtype})


def _found(model: str, adapter: str | None, overrides: Sequence[str]) -> Found:
    if adapter is None:
        return find_model(model, overrides=overrides)
    found = find_model(adapter, base=model, overrides=overrides)
    if not found.is_adapter:
        raise UserError(
            f"{adapter} is no adapter, so it cannot be put on {model}.", fix=f"Give it as the model: --model {adapter}."
        )
    return found


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _kappa(found: dict[str, float | None]) -> str:
    return _number(found["fleiss_kappa"])


def _number(value: float | None) -> str:
    return "not defined (all say the same)" if value is None else f"{value:.2f}"
