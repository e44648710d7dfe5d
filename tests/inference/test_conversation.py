from __future__ import annotations

import pytest

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.inference.conversation import Conversation
from tests.tiny import tiny_tokenizer


@pytest.fixture
def encoder() -> TurnEncoder:
    return TurnEncoder(tiny_tokenizer("gemma2"))


def test_a_question_is_read_as_in_training(encoder: TurnEncoder) -> None:
    assert Conversation(encoder, None).ask("Do bats see?", 10).prompt_ids == encoder.prompt_ids(user("Do bats see?"))


def test_questions_and_answers_are_kept_once_they_are_added(encoder: TurnEncoder) -> None:
    talk = Conversation(encoder, None, system="Be brief.")
    first = talk.ask("Do bats see?", 10)
    assert talk.turns == []
    talk.add(first, "Yes.")
    second = talk.ask("All of them?", 10)
    said = [("system", "Be brief."), ("user", "Do bats see?"), ("assistant", "Yes."), ("user", "All of them?")]
    assert [(turn["role"], turn["content"]) for turn in second.turns] == said
    assert second.prompt_ids == encoder.prompt_ids(second.turns)
    talk.reset()
    assert talk.ask("Do bats see?", 10) == first


def test_the_oldest_turns_are_left_out_where_all_do_not_fit(encoder: TurnEncoder) -> None:
    talk = Conversation(encoder, None, system="Be brief.")
    for text in ("One?", "Two?", "Three?"):
        talk.add(talk.ask(text, 10), f"Answer to {text}")
    whole = len(talk.ask("Four?", 10).prompt_ids)
    talk.positions = whole + 10
    assert talk.ask("Four?", 10).forgotten == 0
    talk.positions = whole + 9
    question = talk.ask("Four?", 10)
    assert question.forgotten == 1
    assert [turn["content"] for turn in question.turns[:2]] == ["Be brief.", "Two?"]
    assert len(talk.turns) == 6
    talk.add(question, "Answer to Four?")
    assert [turn["content"] for turn in talk.turns[::2]] == ["Two?", "Three?", "Four?"]


@pytest.mark.parametrize("left", [0, 1, 7, 59, 60])
def test_few_looks_find_what_fits(encoder: TurnEncoder, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    talk = Conversation(encoder, None)
    for number in range(60):
        talk.add(talk.ask(f"Question {number}?", 4), f"Answer {number}.")
    kept = Conversation(encoder, None, turns=talk.turns[2 * left :])
    talk.positions = len(kept.ask("And?", 4).prompt_ids) + 4
    looks, prompt_ids = [], TurnEncoder.prompt_ids

    def counted(self: TurnEncoder, turns) -> list[int]:
        looks.append(len(turns))
        return prompt_ids(self, turns)

    monkeypatch.setattr(TurnEncoder, "prompt_ids", counted)
    assert talk.ask("And?", 4).forgotten == left
    assert len(looks) <= 8


def test_a_long_answer_may_fill_what_is_left_but_gets_a_quarter(encoder: TurnEncoder) -> None:
    ids = encoder.prompt_ids(user("Do bats see?"))
    fits = Conversation(encoder, len(ids) * 4 // 3 + 4)
    assert fits.ask("Do bats see?", 10_000).prompt_ids == ids
    with pytest.raises(UserError, match=f"it has {len(ids)} tokens"):
        Conversation(encoder, len(ids) * 4 // 3 - 4).ask("Do bats see?", 10_000)


def test_a_question_that_is_too_long_changes_nothing(encoder: TurnEncoder) -> None:
    talk = Conversation(encoder, 64)
    talk.add(talk.ask("Hi?", 4), "Hi.")
    with pytest.raises(UserError, match=r"^The question is too long: .*\nThe model has 64 positions"):
        talk.ask("Why? " * 60, 4)
    assert len(talk.turns) == 2
