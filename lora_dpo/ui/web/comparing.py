"""The page on which base and tuned answer the same question, blind, and are voted on."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.ui.ballot import CompareBallot
from lora_dpo.ui.drafts import Draft
from lora_dpo.ui.questions import Turns
from lora_dpo.ui.store import new_ticket
from lora_dpo.ui.web.app import Site
from lora_dpo.ui.web.requests import Values, pieces, read_json, streamed, text_of
from lora_dpo.ui.web.voting import voting_routes

_SUGGESTED = 100


def compare_site(ballot: CompareBallot, questions: list[Turns], system: str, annotator: str | None) -> Site:
    """Returns the page of two sides.

    Args:
        ballot: The sides, and where votes go.
        questions: What is proposed.
        system: A system turn, or the empty text.
        annotator: The name that a browser proposes, if any.
    """

    async def compare(request: Request) -> Response:
        values = await read_json(request)
        prompt = text_of(values, "prompt").strip()
        if not prompt:
            raise UserError("The question is empty.")
        return streamed(_both(ballot, asked(prompt)))

    def asked(prompt: str) -> Turns:
        before: Turns = ({"role": "system", "content": system},) if system else ()
        return (*before, *user(prompt))

    def standing(_: str) -> dict[str, Any]:
        return {"tally": ballot.tally()}

    # Only what can be understood without earlier turns, which the page does not show.
    proposed = [turns[-1]["content"] for turns in questions if turns == asked(turns[-1]["content"])][:_SUGGESTED]
    about = {"annotator": annotator or "", "file": ballot.store.path.name, "questions": proposed}
    routes = [Route("/api/compare", compare, methods=["POST"]), *voting_routes(ballot, "compare", standing)]
    return Site("compare", about, routes, lambda: standing(""))


async def _both(ballot: CompareBallot, turns: Turns) -> AsyncIterator[Values]:
    """Writes the answer on the left, then the one on the right; what their order is, nothing says before the vote."""
    order, seed = drawn_order(), ballot.next_seed()
    found: dict[int, Any] = {}
    for place, number in zip(("left", "right"), order, strict=True):
        side = ballot.sides[number]
        yield {"side": place, "text": ""}
        writing = await to_thread.run_sync(side.begin, turns, seed)
        async for piece in pieces(writing):
            yield {"side": place, "text": piece}
        found[number] = side.answered(writing, seed)
        yield {"side": place, "ended": found[number].ended}
    draft = Draft(turns, (found[0], found[1]), ballot.made_by)
    kept = await to_thread.run_sync(ballot.add, draft)
    alike = found[0].text.split() == found[1].text.split()
    yield {"ticket": _ticket(kept, found[order[0]].text), "pair": kept.id, "alike": alike}


def drawn_order() -> tuple[int, int]:
    """Returns which side is on the left, and which on the right."""
    return secrets.choice(((0, 1), (1, 0)))


def _ticket(draft: Draft, left: str) -> str:
    """Returns a ticket by which a draft is shown as it was: with this text on the left."""
    while draft.shown(ticket := new_ticket())[0].text != left:
        pass
    return ticket
