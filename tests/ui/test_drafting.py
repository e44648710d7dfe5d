from __future__ import annotations

import pytest

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.drafting import ATTEMPTS, Drafter
from lora_dpo.ui.drafts import TOO_ALIKE, likeness, question_id
from lora_dpo.ui.sides import Side, check_can_differ, seed_for
from tests.ui.conftest import SAMPLING

TURNS = user("Do bats see?")


def answer_of(side: Side, seed: int) -> str:
    with side.begin(TURNS, seed) as writing:
        return "".join(writing)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Yes, they do.", "yes,  they\ndo", True),
        ("a b c d e f g h i j", "a b c d e f g h i x", True),
        ("a b c d e f g h i j", "a b c d e f g h x y", False),
        ("Yes.", "No.", False),
        ("", " ", True),
    ],
)
def test_too_alike(one: str, other: str, alike: bool) -> None:
    assert (likeness(one, other) >= TOO_ALIKE) == alike


def test_two_different_answers_which_anybody_can_write_again(drafter: Drafter) -> None:
    draft = drafter.draft(TURNS)
    assert draft is not None
    one, other = draft.answers
    assert likeness(one.text, other.text) < TOO_ALIKE
    side = drafter.sides[0]
    assert [answer_of(side, answer.seed) for answer in (one, other)] == [one.text, other.text]  # type: ignore[arg-type]
    assert one.seed == seed_for(0, question_id(TURNS), 0, 0)
    assert one.author["name"] == "base"
    assert one.author["sampling"] == {
        "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0
    }  # fmt: skip
    assert len(one.author["weights_sha256"]) == 16
    again = Drafter(drafter.sides, seed=0).draft(TURNS)
    assert again == draft
    assert Drafter(drafter.sides, seed=1).draft(TURNS) != draft


def test_answers_that_are_too_alike_are_drawn_again(work, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(ChatModel(find_model("base")), SAMPLING)
    seen = []

    def judge(one: str, other: str) -> float:
        seen.append((one, other))
        return 0.95 if len(seen) < 3 else 0.5

    monkeypatch.setattr("lora_dpo.ui.drafting.likeness", judge)
    draft = Drafter((side, side), 0).draft(TURNS)
    assert draft is not None
    assert len(seen) == 3
    assert len({one for one, _ in seen}) == 1
    assert len({other for _, other in seen}) == 3
    assert (draft.answers[0].text, draft.answers[1].text) == seen[-1]
    assert draft.answers[1].seed == seed_for(0, question_id(TURNS), 1, 2)


def test_the_least_alike_are_taken_where_all_are_alike(work, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(ChatModel(find_model("base")), SAMPLING)
    values = iter([0.95, 0.91, 0.97, 0.92])
    monkeypatch.setattr("lora_dpo.ui.drafting.likeness", lambda one, other: next(values))
    draft = Drafter((side, side), 0).draft(TURNS)
    assert draft is not None
    assert draft.answers[1].seed == seed_for(0, question_id(TURNS), 1, 1)


def test_the_same_answer_each_time_is_told(work) -> None:
    model = ChatModel(find_model("base"))
    sure = Side(model, Sampling(6, temperature=1.0, top_k=1))
    with pytest.raises(UserError, match=rf"the same, however often they are drawn \(tried: {ATTEMPTS}\)"):
        Drafter((sure, sure), 0).draft(TURNS)
    greedy = Side(model, Sampling(6))
    with pytest.raises(UserError, match="Both answers would be the same"):
        check_can_differ((greedy, greedy))


def test_base_and_tuned_are_different_sides(work) -> None:
    tuned = ChatModel(find_model("runs/small"))
    sides = (Side(tuned, Sampling(6), base=True), Side(tuned, Sampling(6)))
    check_can_differ(sides)
    draft = Drafter(sides, 0).draft(TURNS)
    assert draft is not None
    base, other = draft.answers
    assert other.by == "runs/small"
    assert base.by == tuned.base_name
    assert base.seed is other.seed is None
    assert base.author["adapter"] is None
    assert other.author["adapter"].endswith("adapter")
    assert sides[0].identity == Side(ChatModel(find_model("base")), SAMPLING).identity != sides[1].identity


def test_a_question_that_is_too_long_is_told(drafter: Drafter) -> None:
    with pytest.raises(UserError, match="The question is too long"):
        drafter.draft(user("why? " * 600))


def test_a_draft_that_is_stopped_is_none(drafter: Drafter) -> None:
    drafter.stop()
    assert drafter.draft(TURNS) is None
