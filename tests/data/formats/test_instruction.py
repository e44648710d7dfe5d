from __future__ import annotations

import pytest

from lora_dpo.data.formats.base import BadRowError
from lora_dpo.data.formats.instruction import mapped_answers, recognise_answers
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import AnswerColumns

SYSTEM = {"role": "system", "content": "Be kind."}
Q1 = {"role": "user", "content": "Capital of France?"}
A1 = {"role": "assistant", "content": "Paris."}
Q2 = {"role": "user", "content": "And of Spain?"}
A2 = {"role": "assistant", "content": "Madrid."}
RANKED = {"prompt": Q2["content"], "chosen": "Madrid.", "rejected": "Barcelona."}


def taught(row: dict, name: str) -> list[tuple]:
    known = recognise_answers([row], "x")
    assert known.name == name
    return [(each.prompt, each.answer) for each in known.convert(row)]


@pytest.mark.parametrize("question", ["question", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "completion", "response", "output"])
def test_a_question_and_its_answer(question: str, answer: str) -> None:
    row = {question: "And of Spain?", answer: "Madrid.", "source": "a book"}
    assert taught(row, "questions and answers") == [((Q2,), "Madrid.")]


def test_messages_as_prompt_and_completion() -> None:
    row = {"prompt": [Q1, A1, Q2], "completion": [A2], "system": "Be kind."}
    assert taught(row, "questions and answers") == [((SYSTEM, Q1, A1, Q2), "Madrid.")]


@pytest.mark.parametrize("context", ["input", "context"])
def test_instructions_with_input(context: str) -> None:
    row = {"instruction": "Translate.", context: "Madrid", "output": "Madrid"}
    (((turn,), answer),) = taught(row, "instructions")
    assert (turn["content"], answer) == ("Translate.\nMadrid", "Madrid")
    bare = {
        "instruction": "And of Spain?",
        context: "",
        "response": "Madrid.",
        "history": [["Capital of France?", "Paris."]],
    }
    assert taught(bare, "instructions") == [((Q1, A1, Q2), "Madrid.")]


def test_every_answer_of_a_conversation_is_taught_after_what_stands_before_it() -> None:
    row = {"prompt": "Capital of France?", "messages": [SYSTEM, Q1, A1, Q2, A2]}
    assert taught(row, "conversations") == [((SYSTEM, Q1), "Paris."), ((SYSTEM, Q1, A1, Q2), "Madrid.")]
    sharegpt = [{"from": "human", "value": "And of Spain?"}, {"from": "gpt", "value": "Madrid."}]
    assert taught({"conversations": sharegpt}, "conversations") == [((Q2,), "Madrid.")]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (RANKED, "prompt, chosen, rejected: chosen answers"),
        (
            {**RANKED, "messages": [Q1, A1], "score_chosen": 9, "score_rejected": 2},
            "UltraFeedback (binarised): chosen answers",
        ),
        (
            {
                "question": Q2["content"],
                "best_answer": "Madrid.",
                "correct_answers": ["Madrid.", "It is Madrid."],
                "incorrect_answers": ["Barcelona."],
            },
            "TruthfulQA (Hub, generation): chosen answers",
        ),
    ],
)
def test_of_preferences_the_best_answer_is_taught(row: dict, name: str) -> None:
    assert taught(row, name) == [((Q2,), "Madrid.")]


def test_an_answer_that_is_not_wanted_is_not_taught() -> None:
    row = {"prompt": "And of Spain?", "completion": "Barcelona.", "label": False}
    assert taught(row, "questions and answers") == []
    assert taught({**row, "label": True}, "questions and answers") == [((Q2,), "Barcelona.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [Q1]}, "has no turn of the assistant"),
        ({"messages": "Paris."}, "not a list of messages"),
        ({"question": "q", "answer": None}, "column 'answer' is null"),
        ({"question": "q", "answer": [A1, A2]}, "holds 2 messages where one answer is expected"),
        ({"instruction": 7, "output": "x"}, "column 'instruction' is 7, not text"),
    ],
)
def test_a_bad_row_says_why(row: dict, reason: str) -> None:
    known = recognise_answers([row], "x")
    with pytest.raises(BadRowError, match=reason):
        known.convert(row)


def test_unknown_columns_list_the_formats_and_the_mapping_that_would_help() -> None:
    with pytest.raises(UserError) as caught:
        recognise_answers([{"Question": "q", "Answers": "a"}], "qa.csv")
    said = str(caught.value)
    assert said.startswith("qa.csv: the columns Question, Answers are no known format of answers")
    assert "conversations: messages or conversations" in said
    assert "'sft.columns={prompt: Question, answer: Answers}'" in said


def test_columns_are_named_by_the_recipe() -> None:
    row = {"Ask": "And of Spain?", "Say": "Madrid.", "topic": 3}
    known = mapped_answers(AnswerColumns(prompt="Ask", answer="Say", group="topic"), [row], "x")
    (each,) = known.convert(row)
    assert (each.prompt, each.answer, each.group) == ((Q2,), "Madrid.", "3")
    with pytest.raises(UserError, match="sft.columns.answer is 'say', but there is no such column\nDid you mean 'Say'"):
        mapped_answers(AnswerColumns(prompt="Ask", answer="say"), [row], "x")
    with pytest.raises(BadRowError, match=r"column 'answer' is null \(sft.columns: prompt=Ask, answer=Say\)"):
        mapped_answers(AnswerColumns(prompt="Ask", answer="Say"), [row], "x").convert({"Ask": "q", "Say": None})
