from __future__ import annotations

import pytest

from lora_dpo.data.formats.base import BadRowError, Options
from lora_dpo.data.formats.pairwise import ALPACA, ORCA, PLAIN, SHAREGPT, ULTRAFEEDBACK
from lora_dpo.data.formats.registry import recognise

SYSTEM = {"role": "system", "content": "Be kind."}
Q1 = {"role": "user", "content": "Capital of France?"}
A1 = {"role": "assistant", "content": "Paris."}
Q2 = {"role": "user", "content": "And of Spain?"}
GOOD = {"role": "assistant", "content": " Madrid.\n"}
BAD = {"role": "assistant", "content": "Barcelona."}
PLAIN_ROW = {"prompt": "And of Spain?", "chosen": " Madrid.\n", "rejected": "Barcelona."}


def only(row: dict, known, **options):
    assert recognise([row], "x") is known
    (made,) = known.convert(row, Options(**options))
    assert (made.chosen, made.rejected) == (" Madrid.\n", "Barcelona.")
    return made


def refused(row: dict, known) -> str:
    with pytest.raises(BadRowError) as caught:
        known.convert(row, Options())
    return str(caught.value)


def test_plain_texts():
    made = only(PLAIN_ROW, PLAIN)
    assert made.prompt == (Q2,)
    assert made.group is None


@pytest.mark.parametrize("answer", [lambda turn: turn, lambda turn: [turn], lambda turn: turn["content"]])
def test_plain_messages(answer):
    row = {"prompt": [SYSTEM, Q1, A1, Q2], "chosen": answer(GOOD), "rejected": answer(BAD)}
    assert only(row, PLAIN).prompt == (SYSTEM, Q1, A1, Q2)


def test_plain_system_and_group():
    row = PLAIN_ROW | {"system": "Be kind.", "group": 17, "annotator": "me", "choice": "a"}
    made = only(row, PLAIN)
    assert made.prompt == (SYSTEM, Q2)
    assert made.group == "17"
    assert only(PLAIN_ROW | {"system": "", "group": ""}, PLAIN).prompt == (Q2,)
    assert only(PLAIN_ROW | {"system": None, "group": None}, PLAIN).group is None


@pytest.mark.parametrize("choice", ["skip", "both_bad", "both_good"])
def test_collected_rows_without_a_preference(choice):
    row = {"prompt": "q", "choice": choice, "answers": ["a", "b"]}
    assert recognise([row], "x") is PLAIN
    assert PLAIN.convert(row, Options()) == []
    assert PLAIN.convert(PLAIN_ROW | {"choice": choice}, Options()) == []


def test_ultrafeedback_conversations():
    row = {
        "prompt": Q1["content"],
        "prompt_id": "abc",
        "chosen": [Q1, A1, Q2, GOOD],
        "rejected": [Q1, A1, Q2, BAD],
        "messages": [Q1, A1, Q2, GOOD],
        "score_chosen": 8.0,
        "score_rejected": 6.5,
    }
    assert only(row, ULTRAFEEDBACK).prompt == (Q1, A1, Q2)
    assert only(row, ULTRAFEEDBACK, min_margin=1.5).prompt == (Q1, A1, Q2)
    assert ULTRAFEEDBACK.convert(row, Options(min_margin=1.6)) == []
    assert only(row | {"score_chosen": 1, "score_rejected": 9}, ULTRAFEEDBACK).chosen == " Madrid.\n"
    with pytest.raises(BadRowError, match="not both numbers"):
        ULTRAFEEDBACK.convert(row | {"score_chosen": "high"}, Options(min_margin=1))


def test_ultrafeedback_single_turn_strings():
    row = PLAIN_ROW | {"score_chosen": 8.0, "score_rejected": 6.5}
    assert only(row, ULTRAFEEDBACK).prompt == (Q2,)


def test_equal_conversations_are_left_to_lint():
    row = {"prompt": "x", "chosen": [Q1, A1], "rejected": [Q1, A1]}
    (made,) = PLAIN.convert(row, Options())
    assert (made.prompt, made.chosen, made.rejected) == ((Q1,), "Paris.", "Paris.")


def test_conversations_that_cannot_be_divided():
    row = {"prompt": "x", "chosen": [Q1, GOOD, Q2, A1], "rejected": [Q1, BAD, Q2, A1]}
    assert refused(row, PLAIN) == (
        "chosen and rejected part after turn 1, and what follows in 'chosen' is assistant, user, assistant "
        "instead of one assistant turn"
    )
    assert "share no turn" in refused({"prompt": "x", "chosen": [Q1, A1], "rejected": [Q2, A1]}, PLAIN)
    assert "share no turn" in refused({"prompt": "x", "chosen": [A1, A1], "rejected": [Q2, A1]}, PLAIN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": None}, "column 'chosen' is null"),
        ({"chosen": 4.5}, "column 'chosen' is 4.5, not an object with role and content"),
        ({"chosen": []}, "column 'chosen' holds 0 messages where one answer is expected"),
        ({"rejected": [Q1]}, "column 'rejected' holds a turn of the user, not of the assistant"),
        ({"rejected": [Q1, BAD]}, "column 'rejected' holds 2 messages where one answer is expected"),
        ({"chosen": {"role": "tool", "content": "x"}}, "column 'chosen' has the role 'tool'; known are system, user"),
        ({"chosen": {"role": "assistant"}}, "column 'chosen', key 'content' is None, not text"),
        ({"prompt": 3}, "column 'prompt' is 3, not a list of messages"),
        ({"prompt": ["hello"]}, "column 'prompt', message 1 is 'hello', not an object"),
        ({"system": 1}, "column 'system' is 1, not text"),
        ({"chosen": "half \ud83d"}, "column 'chosen' holds half a character (the lone surrogate \\ud83d)"),
    ],
)
def test_bad_rows(change, reason):
    assert reason in refused(PLAIN_ROW | change, PLAIN)


def test_missing_column():
    assert refused({"prompt": "q", "chosen": "a"}, PLAIN) == "column 'rejected' is missing"


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize(
    ("role", "content", "human", "gpt"), [("from", "value", "human", "gpt"), ("role", "content", "user", "assistant")]
)
def test_sharegpt(role, content, human, gpt, strings):
    row = {
        "conversations": [
            {role: human, content: "Capital of France?"},
            {role: gpt, content: "Paris."},
            {role: human, content: "And of Spain?"},
        ],
        "chosen": " Madrid.\n" if strings else {role: gpt, content: " Madrid.\n"},
        "rejected": "Barcelona." if strings else {role: gpt, content: "Barcelona."},
    }
    assert only(row, SHAREGPT).prompt == (Q1, A1, Q2)
    assert only(row | {"system": "Be kind."}, SHAREGPT).prompt == (SYSTEM, Q1, A1, Q2)
    inside = [{role: "system", content: "Be kind."}, *row["conversations"]]
    assert only(row | {"conversations": inside, "system": "other"}, SHAREGPT).prompt == (SYSTEM, Q1, A1, Q2)


def test_alpaca():
    row = {"instruction": "And of Spain?", "input": "", "chosen": " Madrid.\n", "rejected": "Barcelona."}
    assert only(row, ALPACA).prompt == (Q2,)
    assert only(row | {"input": "Hint"}, ALPACA).prompt == ({"role": "user", "content": "And of Spain?\nHint"},)
    full = row | {"system": "Be kind.", "history": [["Capital of France?", "Paris."]]}
    assert only(full, ALPACA).prompt == (SYSTEM, Q1, A1, Q2)
    assert "column 'history' is not a list" in refused(row | {"history": [["only"]]}, ALPACA)
    assert "column 'history' is not a list" in refused(row | {"history": "text"}, ALPACA)


@pytest.mark.parametrize("column", ["question", "input"])
def test_orca(column):
    row = {"system": "Be kind.", column: "And of Spain?", "chosen": " Madrid.\n", "rejected": "Barcelona."}
    assert only(row, ORCA).prompt == (SYSTEM, Q2)
    assert only(row | {"system": ""}, ORCA).prompt == (Q2,)
    named = row | {"prompt": "And of Spain?"}
    assert only(named, PLAIN).prompt == (SYSTEM, Q2)
