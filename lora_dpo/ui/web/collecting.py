"""The page on which preferences are collected."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lora_dpo.ui.desk import Desk
from lora_dpo.ui.drafts import Answered
from lora_dpo.ui.web.app import Site
from lora_dpo.ui.web.requests import answered, read_json, text_of
from lora_dpo.ui.web.voting import voting_routes

_WAIT_SECONDS = 10.0
"""How long a browser that waits for a draft is kept waiting before it asks again."""


def collect_site(desk: Desk, annotator: str | None) -> Site:
    """Returns the page of a desk.

    Args:
        desk: What is asked.
        annotator: The name that a browser proposes, if any.
    """

    def standing(name: str) -> dict[str, Any]:
        return {"progress": asdict(desk.progress(name))}

    def next_for(name: str) -> dict[str, Any]:
        showing = desk.next(name, _WAIT_SECONDS)
        if showing is None:
            progress = desk.progress(name)
            return {"progress": asdict(progress), "waits_for": progress.waits_for}
        shown = {
            "ticket": showing.ticket,
            "pair": showing.draft.id,
            "turns": list(showing.draft.turns),
            "left": _blind(showing.left),
            "right": _blind(showing.right),
        }
        return {"showing": shown, **standing(name)}

    async def next_one(request: Request) -> Response:
        values = await read_json(request)
        return await answered(lambda: next_for(text_of(values, "annotator")))

    routes = [Route("/api/next", next_one, methods=["POST"]), *voting_routes(desk, "web", standing)]
    return Site("collect", {"annotator": annotator or "", "file": desk.store.path.name}, routes)


def _blind(answer: Answered) -> dict[str, Any]:
    """Returns what may be known of an answer before there is a vote."""
    return {"text": answer.text, "ended": answer.ended}
