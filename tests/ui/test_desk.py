from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lora_dpo.data.pair import user
from lora_dpo.errors import UserError
from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling
from lora_dpo.ui.desk import AHEAD, Desk, Showing
from lora_dpo.ui.drafting import Drafter
from lora_dpo.ui.questions import SCIENCE, read_questions
from lora_dpo.ui.sides import Side
from lora_dpo.ui.statistics import summary
from lora_dpo.ui.store import Store, Vote
from tests.process import wait_until
from tests.ui.conftest import SAMPLING

QUESTIONS = [user(text) for text in ("Do bats see?", "Is glass liquid?", "Why is the sky blue?", "What do bulls hate?")]


@pytest.fixture
def desk_of(work: Path):
    """Returns a function that makes a desk with a model of its own, as a further process would have it."""

    def make(questions=QUESTIONS, **options) -> Desk:
        side = Side(ChatModel(find_model("base")), SAMPLING)
        return Desk(questions, Store(work / "prefs.jsonl"), Drafter((side, side), seed=0), **options)

    return make


def vote(desk: Desk, showing: Showing, annotator: str, choice: str = "left") -> bool:
    return desk.vote(Vote(showing.ticket, showing.draft, choice, annotator, 5.0))  # type: ignore[arg-type]


def all_of(desk: Desk, annotator: str) -> list[str]:
    seen = []
    while (showing := desk.next(annotator)) is not None:
        seen.append(showing.draft.turns[0]["content"])
        vote(desk, showing, annotator)
    return seen


def test_all_questions_are_asked_once_in_their_order(desk_of) -> None:
    with desk_of().open("ann") as desk:
        assert all_of(desk, "ann") == [turns[0]["content"] for turns in QUESTIONS]
        assert desk.progress("ann").is_complete
        assert desk.next("ann") is None
        assert len(desk.store.votes()) == 4


def test_a_second_start_goes_on_and_has_the_drafts_already(desk_of, work: Path) -> None:
    with desk_of().open("ann") as desk:
        first = desk.next("ann")
        vote(desk, first, "ann")
        second = desk.next("ann")
    again = desk_of()  # which is not opened, so it writes nothing
    assert again.progress("ann").done == 1
    showing = again.next("ann", timeout_seconds=0)
    assert showing.draft == second.draft
    assert showing.ticket != second.ticket


def test_drafts_are_written_ahead_and_not_without_end(desk_of) -> None:
    with desk_of([user(f"Question {n}?") for n in range(12)]).open("ann") as desk:
        waiting = desk._by_question
        wait_until(lambda: len(waiting()) == AHEAD + 1)
        assert desk.next("ann", timeout_seconds=0) is not None  # it was there
        time.sleep(0.5)
        assert len(waiting()) == AHEAD + 1
        vote(desk, desk.next("ann"), "ann")
        wait_until(lambda: len(waiting()) == AHEAD + 2)


def test_two_people_share_the_questions(desk_of) -> None:
    with desk_of().open() as desk:
        ann, bob = desk.next("ann"), desk.next("bob")
        assert ann.draft.question != bob.draft.question
        assert desk.next("ann").draft == ann.draft  # the page was loaded again
        vote(desk, ann, "ann")
        vote(desk, bob, "bob")
        assert len(all_of(desk, "ann")) == 2
        assert desk.next("bob") is None
        assert len(desk.store.votes()) == 4


def test_people_in_several_processes_share_the_questions(desk_of) -> None:
    with desk_of().open() as one, desk_of().open() as other:
        ann, bob = one.next("ann"), other.next("bob")
        assert ann.draft.question != bob.draft.question
        assert other.next("bob").draft == bob.draft
        vote(one, ann, "ann")
        assert other.next("bob").draft == bob.draft
        vote(other, bob, "bob")
        all_of(one, "ann")
        assert other.next("bob") is None
        assert len(one.store.votes()) == 4


def test_who_leaves_keeps_nothing_from_others(desk_of) -> None:
    with desk_of().open() as one:
        held = one.next("ann").draft
        with desk_of().open() as other:
            assert other.next("bob").draft != held
    with desk_of().open() as other:
        assert other.next("bob").draft == held


def test_who_waits_is_told_what_for(desk_of) -> None:
    with desk_of().open() as desk:
        for _ in range(3):
            vote(desk, desk.next("ann"), "ann")
        last = desk.next("ann")
        assert desk.next("bob", timeout_seconds=0) is None
        assert desk.progress("bob").waits_for == "Others are reading what is left ..."
        assert desk.progress("ann").with_others == 0
        vote(desk, last, "ann")
        assert desk.progress("bob").is_complete


def test_who_does_not_vote_for_long_keeps_nothing_from_others(desk_of, monkeypatch: pytest.MonkeyPatch) -> None:
    with desk_of().open() as one, desk_of().open() as other:
        held = one.next("ann").draft
        now = time.time()
        monkeypatch.setattr("lora_dpo.ui.holds.time.time", lambda: now + 601)
        assert other.next("bob").draft == held


def test_with_two_votes_a_pair_both_see_the_same_answers(desk_of) -> None:
    with desk_of(votes=2).open() as desk:
        assert all_of(desk, "ann") == all_of(desk, "bob")
        assert desk.next("eve") is None
        found = summary(desk.store.votes())
    assert found["judged_by_several"] == 4
    assert found["agreement"][0]["pairs"] == 4


def test_another_process_sees_the_pairs_that_wait_for_a_second_vote(desk_of) -> None:
    with desk_of(QUESTIONS[:2], votes=2).open() as one, desk_of(QUESTIONS[:2], votes=2).open() as other:
        first = one.next("ann")
        vote(one, first, "ann")
        second = other.next("bob")
        assert second.draft.id == first.draft.id
        vote(other, second, "bob")
        all_of(one, "ann")
        all_of(other, "bob")
        assert one.progress("bob").is_complete
    assert summary(one.store.votes())["judged_by_several"] == 2


def test_skipped_is_skipped_for_one_person_alone(desk_of) -> None:
    with desk_of(QUESTIONS[:1]).open() as desk:
        vote(desk, desk.next("ann"), "ann", "skip")
        assert desk.next("ann") is None
        vote(desk, desk.next("bob"), "bob", "both_bad")
        assert desk.next("eve") is None


def test_what_is_undone_is_asked_again(desk_of) -> None:
    with desk_of().open() as desk:
        first = desk.next("ann")
        vote(desk, first, "ann")
        vote(desk, desk.next("ann"), "ann")
        assert desk.undo("bob") is None
        assert desk.undo("ann")["question"] != first.draft.question
        assert desk.undo("ann")["question"] == first.draft.question
        assert desk.undo("ann") is None
        assert desk.next("ann").draft == first.draft


def test_a_vote_that_is_sent_twice_counts_once(desk_of) -> None:
    with desk_of().open() as desk:
        showing = desk.next("ann")
        assert vote(desk, showing, "ann")
        assert not vote(desk, showing, "ann")
    again = desk_of()
    assert again.find(showing.draft.id) == showing.draft
    assert not vote(again, showing, "ann")
    with pytest.raises(UserError, match="not known here"):
        again.find("../secret")


def test_a_question_that_cannot_be_asked_is_left_out(desk_of) -> None:
    with desk_of([user("why? " * 600), QUESTIONS[0]]).open() as desk:
        assert all_of(desk, "ann") == ["Do bats see?"]
        progress = desk.progress("ann")
        assert (progress.done, progress.total) == (1, 1)
        assert list(progress.left_out.values())[0].startswith("The question is too long: ")


def test_other_weights_are_asked_about_anew(desk_of, work: Path) -> None:
    with desk_of(QUESTIONS[:1]).open() as desk:
        all_of(desk, "ann")
    side = Side(ChatModel(find_model("runs/small")), SAMPLING)
    with Desk(QUESTIONS[:1], desk.store, Drafter((side, side), 0)).open() as other:
        assert all_of(other, "ann") == ["Do bats see?"]
    assert len(desk.store.votes()) == 2


def test_what_breaks_in_the_background_is_raised_in_front(desk_of, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_of()
    monkeypatch.setattr(Drafter, "draft", lambda self, turns: 1 / 0)
    with desk.open("ann"), pytest.raises(ZeroDivisionError):
        desk.next("ann")


def test_a_question_at_which_the_model_breaks_is_left_out(desk_of, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    written = Drafter.draft

    def breaking(self: Drafter, turns):
        if turns in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[3]):  # no three in a row
            raise MemoryError("too much")
        return written(self, turns)

    desk = desk_of()
    monkeypatch.setattr(Drafter, "draft", breaking)
    with desk.open("ann"):
        assert all_of(desk, "ann") == ["Why is the sky blue?"]
        assert list(desk.progress("ann").left_out.values()) == ["MemoryError: too much"] * 3
    assert "A question is left out" in caplog.text


def test_closing_does_not_wait_for_an_answer(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, written, answers = threading.Event(), [], ChatModel.answers

    def watched(self: ChatModel, *arguments, **options):
        begun.set()
        written.extend(found := answers(self, *arguments, **options))
        return found

    monkeypatch.setattr(ChatModel, "answers", watched)
    side = Side(ChatModel(find_model("base")), Sampling(480, temperature=1.0))
    desk = Desk(QUESTIONS, Store(work / "prefs.jsonl"), Drafter((side, side), 0))
    with desk.open("ann"):
        assert begun.wait(300)
    assert [answer for answer in written if len(answer["ids"]) == 480] == []
    assert not any(thread.name == "drafting" for thread in threading.enumerate())


def test_the_questions_that_come_along() -> None:
    questions = read_questions(None, key="QUESTIONS")
    assert len(questions) == len(set(map(str, questions))) == 50
    assert all(turns[0]["content"].endswith("?") for turns in questions)
    assert SCIENCE.is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", "Do bats see?\n\n Do bats see? \nWhy?\n"),
        ("q.csv", "id,question\n1,Do bats see?\n2,Do bats see?\n3,Why?\n"),
        ("q.jsonl", '{"prompt": "Do bats see?"}\n{"prompt": "Do bats see?"}\n{"prompt": "Why?"}\n'),
    ],
)
def test_questions_from_files_each_once(tmp_path: Path, capsys, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    questions = read_questions(str(tmp_path / name), key="QUESTIONS", system="Be short.")
    assert [turns[-1]["content"] for turns in questions] == ["Do bats see?", "Why?"]
    assert [turns[0]["content"] for turns in questions] == ["Be short.", "Be short."]
    assert "1 of 3 questions stand there twice" in capsys.readouterr().err
