"""What the pages collect and compare have in common: a vote, and taking it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lora_dpo.ui.drafts import Draft
from lora_dpo.ui.lines import Line
from lora_dpo.ui.store import Vote, check_annotator
from lora_dpo.ui.web.requests import Values, answered, number_of, read_json, text_of


class Ballot(Protocol):
    """What takes votes."""

    def find(self, draft_id: str) -> Draft:
        """Returns a draft."""

    def vote(self, vote: Vote) -> bool:
        """Stores a vote."""

    def undo(self, annotator: str, ticket: str | None = None) -> Line | None:
        """Takes a vote back; the same ticket takes back no second one."""


def voting_routes(ballot: Ballot, via: str, standing: Callable[[str], dict[str, Any]]) -> list[Route]:
    """Returns the addresses that take votes.

    Args:
        ballot: What takes them.
        via: What the store says of where they are from.
        standing: Returns how things stand for an annotator, which goes with each answer.
    """

    def store(values: Values) -> dict[str, Any]:
        draft = ballot.find(text_of(values, "pair"))
        edited = values.get("edited")
        vote = Vote(
            ticket=text_of(values, "ticket"),
            draft=draft,
            choice=text_of(values, "choice"),  # type: ignore[arg-type]  # which the vote checks
            annotator=text_of(values, "annotator"),
            seconds=number_of(values, "seconds", 0),
            edited=None if edited is None else text_of(values, "edited"),
            comment=text_of(values, "comment", ""),
            via=via,
        )
        ballot.vote(vote)
        left, right = draft.shown(vote.ticket)
        return {"left": left.by, "right": right.by, **standing(vote.annotator)}

    def take_back(values: Values) -> dict[str, Any]:
        annotator = text_of(values, "annotator")
        check_annotator(annotator)
        undone = ballot.undo(annotator, text_of(values, "ticket"))
        return {"undone": None if undone is None else undone["choice"], **standing(annotator)}

    async def name(request: Request) -> Response:
        check_annotator(text_of(await read_json(request), "annotator"))
        return JSONResponse({})

    async def vote(request: Request) -> Response:
        values = await read_json(request)
        return await answered(lambda: store(values))

    async def undo(request: Request) -> Response:
        values = await read_json(request)
        return await answered(lambda: take_back(values))

    return [Route(f"/api/{each.__name__}", each, methods=["POST"]) for each in (name, vote, undo)]
