"""Drafts and votes that nothing wrote, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from lora_dpo.data.pair import user
from lora_dpo.ui.drafts import Answered, Draft
from lora_dpo.ui.store import Vote, new_ticket


def draft(question: str = "Do bats see?", one: str = "Yes, all.", other: str = "No, none.", **by: str) -> Draft:
    """Returns a draft; `by` names the authors `one` and `other`."""
    answers = tuple(
        Answered(text, len(text), True, 1, {"name": by.get(side, "model")})
        for side, text in (("one", one), ("other", other))
    )
    return Draft(user(question), answers, "sides")  # type: ignore[arg-type]


def vote(of: Draft | None = None, prefers: str | None = None, **values: Any) -> Vote:
    """Returns a vote; `prefers` is the text that is to be chosen, wherever it is shown."""
    of = draft() if of is None else of
    ticket = values.pop("ticket", None) or new_ticket()
    if prefers is not None:
        values["choice"] = "left" if of.shown(ticket)[0].text == prefers else "right"
    values = {"choice": "left", "annotator": "ann", "seconds": 10.0, **values}
    return Vote(ticket, of, **values)
