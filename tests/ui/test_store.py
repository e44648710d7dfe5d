from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dpo.data.sources import load_pairs
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import DataSection
from lora_dpo.ui.drafts import DraftFile
from lora_dpo.ui.store import CHOICES, AlreadyVotedError, Store, new_ticket
from tests.ui.votes import draft, vote


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "prefs.jsonl")


def pairs_of(store: Store) -> list[tuple[str, str]]:
    (pairs,) = load_pairs(DataSection(path=str(store.path))).by_source
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_a_vote_is_a_line_that_says_everything(store: Store) -> None:
    given = vote(draft(one="Yes.", other="No.", other_by="x"), prefers="No.", comment=" Short. ", seconds=3.456)
    assert store.add(given)
    line = json.loads(store.path.read_text())
    assert (line["prompt"], line["chosen"], line["rejected"]) == ("Do bats see?", "No.", "Yes.")
    assert (line["comment"], line["seconds"], line["annotator"], line["edited"]) == ("Short.", 3.46, "ann", False)
    assert line[line["choice"]]["text"] == "No."
    assert line["left"]["author"] == {"name": "model"}
    assert line["left"]["seed"] == 1
    assert line["at"].endswith("+00:00")
    assert line["id"] == given.ticket


def test_the_same_vote_counts_once(store: Store) -> None:
    given = vote()
    assert store.add(given)
    assert not store.add(given)
    assert not Store(store.path).add(given)
    assert len(store.votes()) == 1


def test_one_person_has_one_vote_on_two_answers(store: Store) -> None:
    first = vote(choice="left")
    store.add(first)
    for choice in ("left", "right", "skip"):  # in another window, under another ticket
        with pytest.raises(AlreadyVotedError, match="already, here or in another window"):
            Store(store.path).add(vote(choice=choice))
    assert not store.add(first)
    assert store.add(vote(annotator="bob"))
    other_weights = dataclasses.replace(draft(), made_by="others")
    assert store.add(vote(other_weights))
    assert store.undo("ann")
    assert store.undo("ann")
    assert store.add(vote(choice="right"))
    assert [line["annotator"] for line in store.votes()] == ["bob", "ann"]


def test_the_ticket_decides_the_sides_and_both_orders_come() -> None:
    shown = draft()
    orders = [shown.shown(new_ticket())[0].text for _ in range(400)]
    assert 120 < orders.count("Yes, all.") < 280
    ticket = new_ticket()
    assert shown.shown(ticket) == shown.shown(ticket)


def test_a_ticket_does_not_tell_the_order_but_a_second_start_knows_it(tmp_path: Path) -> None:
    drafts = DraftFile(tmp_path / "prefs.jsonl")
    drafts.add(draft())
    (kept,), (again,) = drafts.all("ours").values(), DraftFile(tmp_path / "prefs.jsonl").all("ours").values()
    tickets = [new_ticket() for _ in range(400)]
    assert [kept.shown(ticket) for ticket in tickets] == [again.shown(ticket) for ticket in tickets]
    another = draft()  # as anybody could make it who knows answers and ticket
    assert 120 < sum(kept.shown(ticket) == another.shown(ticket) for ticket in tickets) < 280
    for bit in range(128):
        is_left = [(int(ticket, 16) >> bit & 1) == (kept.shown(ticket)[0].text == "Yes, all.") for ticket in tickets]
        assert 120 < sum(is_left) < 280


def test_a_vote_that_follows_an_undo_of_the_same_pair_says_so(store: Store) -> None:
    first, other = draft("A?"), draft("B?")
    store.add(vote(first))
    store.undo("ann")
    for of, annotator in ((other, "ann"), (first, "bob"), (first, "ann")):
        store.add(vote(of, annotator=annotator))
    assert [line.get("again", False) for line in store.votes()] == [False, False, True]


def test_undoing_takes_back_the_last_vote_of_that_person_alone(store: Store) -> None:
    for annotator, question in (("ann", "A?"), ("ann", "B?"), ("bob", "C?")):
        store.add(vote(draft(question), annotator=annotator))
    undone = store.undo("ann")
    assert undone is not None
    assert undone["prompt"] == "B?"
    assert [line["prompt"] for line in store.votes()] == ["A?", "C?"]
    assert len(store.path.read_text().splitlines()) == 4
    assert store.undo("ann")["prompt"] == "A?"  # type: ignore[index]
    assert store.undo("ann") is None
    assert store.undo("nobody") is None
    assert [line["prompt"] for line in Store(store.path).votes()] == ["C?"]


def test_the_same_undo_takes_back_one_vote(store: Store) -> None:
    store.add(vote(draft("A?")))
    store.add(vote(draft("B?")))
    ticket = new_ticket()
    for again in (store, store, Store(store.path)):
        assert again.undo("ann", ticket=ticket)["prompt"] == "B?"  # type: ignore[index]
    assert [line["prompt"] for line in store.votes()] == ["A?"]
    assert json.loads(store.path.read_text().splitlines()[-1])["id"] == ticket
    assert store.undo("bob", ticket=new_ticket()) is None
    assert store.undo("ann", ticket=store.votes()[0]["id"]) is None  # a vote's, not an undo's
    with pytest.raises(UserError, match="ticket is none of lora-dpo's"):
        store.undo("ann", ticket="x")


def test_data_reads_preferences_and_nothing_else(store: Store) -> None:
    for number, choice in enumerate(CHOICES):
        store.add(vote(draft(f"Question {number}?", "a b c", "d e f"), choice=choice))
    store.add(vote(draft("Edited?", "long text here", "worse"), prefers="long text here", edited=" shorter \n"))
    store.add(vote(draft("Undone?", "x y", "z")))
    store.undo("ann")
    found = pairs_of(store)
    assert sorted(found[0]) == sorted(found[1]) == ["a b c", "d e f"]
    assert found[2:] == [("shorter", "worse")]


def test_the_format_is_named(store: Store) -> None:
    store.add(vote())
    assert load_pairs(DataSection(path=str(store.path))).formats == [["lora-dpo collect"]]


def test_a_store_without_a_preference_says_so(store: Store) -> None:
    store.add(vote(choice="both_bad"))
    with pytest.raises(UserError, match="1 without a preference"):
        pairs_of(store)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choice": "middle"}, "'middle' is no choice"),
        ({"ticket": "../../etc/passwd"}, "ticket is none of lora-dpo's"),
        ({"ticket": "A" * 32}, "ticket is none of lora-dpo's"),
        ({"annotator": ""}, "annotator's name is ''"),
        ({"annotator": "a\nb"}, "annotator's name is"),
        ({"annotator": "a\u2028b"}, "annotator's name is"),
        ({"annotator": "a\x1bb"}, "annotator's name is"),
        ({"annotator": "a\ud83d"}, "annotator's name is"),
        ({"annotator": "x" * 65}, "1 to 64 characters"),
        ({"comment": "x" * 4001}, "has 4001 characters"),
        ({"choice": "both_bad", "edited": "x"}, "only be edited as the better one"),
        ({"edited": "  "}, "must have 1 to"),
    ],
)
def test_what_cannot_be_stored_is_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vote(**values)


@pytest.mark.parametrize("name", ["شاه\u200cرخ", "Ann\xa0Lee", "\U0001f469\u200d\U0001f52c", "张伟"])
def test_names_that_people_have(store: Store, name: str) -> None:
    assert store.add(vote(annotator=name))
    assert Store(store.path).votes()[0]["annotator"] == name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prefs.csv", None, r"--output is .*prefs\.csv, but preferences are collected in a \.jsonl file"),
        ("prefs.jsonl", '{"prompt": "x", "chosen": "a", "rejected": "b"}\n', "other than collected preferences"),
        ("prefs.jsonl", "hello\n", "line 1: this line is no JSON object"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Store(tmp_path / name)
    assert content is None or (tmp_path / name).read_text() == content


@pytest.mark.parametrize("name", ["prefs.jsonl", ".", "..", "/"])
def test_a_folder_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prefs.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        Store(Path(name))


@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from([*CHOICES, "undo"]), st.text(max_size=8)),
        max_size=20,
    )
)
@settings(max_examples=40)
def test_any_order_of_votes_and_undos_gives_what_stands(tmp_path_factory, actions: list[tuple[str, str, str]]) -> None:
    store = Store(tmp_path_factory.mktemp("any") / "prefs.jsonl")
    expected: list[tuple[str, str]] = []
    for number, (annotator, choice, text) in enumerate(actions):
        if choice == "undo":
            last = next((place for place in reversed(range(len(expected))) if expected[place][0] == annotator), None)
            if last is not None:
                del expected[last]
            assert (store.undo(annotator) is None) == (last is None)
        else:
            store.add(vote(draft(f"{number} {text}"), choice=choice, annotator=annotator, comment=text))
            expected.append((annotator, choice))
    assert [(line["annotator"], line["choice"]) for line in Store(store.path).votes()] == expected
