from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from lora_dpo.data.pair import user
from lora_dpo.ui.desk import Desk
from lora_dpo.ui.drafting import Drafter
from lora_dpo.ui.store import Store, Vote, new_ticket
from lora_dpo.ui.terminal import CollectTerminal


def test_who_has_voted_elsewhere_is_told_and_asked_the_next_question(
    work: Path, drafter: Drafter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = user("Do bats see?")
    draft = drafter.draft(turns)
    assert draft is not None
    elsewhere = Store(work / "prefs.jsonl")

    def press() -> str:
        elsewhere.add(Vote(new_ticket(), draft, "right", "ann", 5.0))
        return "1"

    monkeypatch.setattr("lora_dpo.ui.terminal.read_key", press)
    monkeypatch.setattr("lora_dpo.ui.terminal.single_keys", nullcontext)
    monkeypatch.setattr("lora_dpo.ui.terminal.forget_typed", lambda: None)
    with Desk([turns], Store(work / "prefs.jsonl"), drafter).open("ann") as desk:
        CollectTerminal(desk, "ann").run()
    said = capsys.readouterr()
    assert "Error: You have voted on these two answers already" in said.err
    assert "That was the last question." in said.out
    assert [vote["choice"] for vote in elsewhere.votes()] == ["right"]
