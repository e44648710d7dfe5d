"""The page on which base and tuned answer the same question, blind, and are voted on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.ui.ballot import CompareBallot
from lora_dpo.ui.drafts import Draft, first_is_left
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
        before: Turns = ({"role": "system", "content": system},) if system else ()
        return streamed(_both(ballot, (*before, *user(prompt))))

    def standing(_: str) -> dict[str, Any]:
        return {"tally": ballot.tally()}

    proposed = [turns[-1]["content"] for turns in questions[:_SUGGESTED]]
    about = {"annotator": annotator or "", "file": ballot.store.path.name, "questions": proposed}
    routes = [Route("/api/compare", compare, methods=["POST"]), *voting_routes(ballot, "compare", standing)]
    return Site("compare", about, routes, lambda: standing(""))


async def _both(ballot: CompareBallot, turns: Turns) -> AsyncIterator[Values]:
    """Writes the answer on the left, then the one on the right; what their order is, only the ticket knows."""
    ticket, seed = new_ticket(), ballot.next_seed()
    order = (0, 1) if first_is_left(ticket) else (1, 0)
    found: dict[int, Any] = {}
    for place, number in zip(("left", "right"), order, strict=True):
        side = ballot.sides[number]
        yield {"side": place, "text": ""}
        writing = side.begin(turns, seed)
        async for piece in pieces(writing):
            yield {"side": place, "text": piece}
        found[number] = side.answered(writing, seed)
        yield {"side": place, "ended": found[number].ended}
    draft = Draft(turns, (found[0], found[1]), ballot.made_by)
    await to_thread.run_sync(ballot.add, draft)
    alike = found[0].text.split() == found[1].text.split()
    yield {"ticket": ticket, "pair": draft.id, "alike": alike}
