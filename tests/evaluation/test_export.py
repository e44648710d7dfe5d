from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lora_dpo.errors import UserError
from lora_dpo.evaluation.answers import compare_answers
from lora_dpo.evaluation.export import (
    Dialogue,
    Instruction,
    export_alpaca_eval,
    export_mt_bench,
    read_alpaca_eval,
    read_mt_bench,
    write_mt_bench_questions,
)
from lora_dpo.evaluation.work import Work
from tests.evaluation.models import tiny_policies

OPTIONS = {"name": "org/run 1", "max_new_tokens": 6, "batch_size": 2}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ModelOutput(Strict):
    """What `alpaca_eval.main.evaluate` documents of `model_outputs`, and the evaluation set's `dataset`."""

    instruction: str = Field(min_length=1)
    output: str
    generator: str = Field(min_length=1)
    dataset: str


class Choice(Strict):
    index: int
    turns: list[str] = Field(min_length=1)


class ModelAnswer(Strict):
    """What `fastchat.llm_judge.gen_model_answer` writes."""

    question_id: int
    answer_id: str = Field(pattern=r"^\w{22}$")
    model_id: str
    choices: list[Choice] = Field(min_length=1, max_length=1)
    tstamp: float = Field(gt=1.6e9)


class BenchQuestion(Strict):
    """A line of `question.jsonl`."""

    question_id: int
    category: str
    turns: list[str] = Field(min_length=1)


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="ascii").splitlines()


@pytest.fixture
def policies_and_encoder(tiny_models):
    policies, encoder = tiny_policies(tiny_models("llama"))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in policies.trained.named_parameters():
            if parameter.dim() > 1 and "lora" not in name:  # so that the prompt decides the answer
                parameter.normal_(std=0.3)
    return policies, encoder


def test_alpaca_eval(policies_and_encoder, tmp_path: Path) -> None:
    policies, encoder = policies_and_encoder
    asked = [Instruction("Why is the sky blue?", "one"), Instruction("Name a tree – any.", "two")]
    files = export_alpaca_eval(Work(), policies, encoder, asked, tmp_path, **OPTIONS)
    assert [file.name for file in files] == ["org_run_1-before.json", "org_run_1-after.json"]
    prompts = [encoder.prompt_ids([{"role": "user", "content": each.instruction}]) for each in asked]
    answers = compare_answers(Work(), policies, encoder, prompts, max_new_tokens=6, batch_size=1)
    for file, when in zip(files, ("before", "after"), strict=True):
        rows = TypeAdapter(list[ModelOutput]).validate_json(file.read_bytes())
        assert [(row.instruction, row.dataset) for row in rows] == asked
        assert [row.output for row in rows] == [answer["text"] for answer in answers[when]]
        assert {row.generator for row in rows} == {file.stem}
    assert answers["before"] != answers["after"]


def test_mt_bench(policies_and_encoder, tmp_path: Path) -> None:
    policies, encoder = policies_and_encoder
    asked = [
        Dialogue(90, "writing", ["Why is the sky blue – in short?", "Say it again."]),
        Dialogue(81, "math", ["Do bats see?"]),
    ]
    files = export_mt_bench(Work(), policies, encoder, asked, tmp_path, **OPTIONS)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "model_answer/org_run_1-before.jsonl",
        "model_answer/org_run_1-after.jsonl",
    ]
    for file, policy in zip(files, (policies.before, policies.after), strict=True):
        short, long = (ModelAnswer.model_validate_json(line) for line in lines_of(file))
        assert (short.question_id, long.question_id) == (81, 90)
        assert short.model_id == long.model_id == file.stem
        assert short.answer_id != long.answer_id
        first, second = long.choices[0].turns
        assert len(short.choices[0].turns) == 1
        # The second turn is asked after the model's own first answer.
        turns = [
            {"role": "user", "content": asked[0].turns[0]},
            {"role": "assistant", "content": first},
            {"role": "user", "content": asked[0].turns[1]},
        ]
        with policy() as model:
            ids = torch.tensor([encoder.prompt_ids(turns)])
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert second == encoder.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_own_questions_for_mt_bench(tmp_path: Path) -> None:
    asked = [Dialogue(1, "held out", ["Café or tea?"]), Dialogue(2, "held out", ["Why?", "Really?"])]
    file = write_mt_bench_questions(asked, tmp_path)
    assert [BenchQuestion.model_validate_json(line).question_id for line in lines_of(file)] == [1, 2]
    assert read_mt_bench(file) == asked


def test_questions_in_alpaca_evals_form(tmp_path: Path) -> None:
    file = tmp_path / "instructions.json"
    rows = [
        {"instruction": "Why?", "dataset": "helpful_base", "output": "So.", "generator": "someone"},
        {"instruction": "Who?"},
    ]
    file.write_text(json.dumps(rows))
    assert read_alpaca_eval(file) == [Instruction("Why?", "helpful_base"), Instruction("Who?", "instructions")]
    file.write_text(json.dumps([*rows, {"question": "What?"}]))
    with pytest.raises(UserError, match=r"instructions\.json, row 3: instruction is None, not a text"):
        read_alpaca_eval(file)
    with pytest.raises(UserError, match="there is no such file"):
        read_alpaca_eval(tmp_path / "none.json")


def test_questions_in_mt_benchs_form(tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    good = {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["c", "d"]}
    file.write_text(json.dumps(good))
    assert read_mt_bench(file) == [Dialogue(81, "writing", ["a", "b"])]
    for change, message in (
        ({"question_id": "x"}, "question_id is 'x', not a whole number"),
        ({"question_id": 81}, "question_id 81 was there before"),
        ({"turns": "a"}, "turns is 'a', not a list of texts"),
        ({"turns": []}, r"turns is \[\], not a list of texts"),
        ({"category": None}, "category is None, not a text"),
    ):
        file.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'question_id': 82, **change})}\n")
        with pytest.raises(UserError, match=rf"question\.jsonl, line 2: {message}"):
            read_mt_bench(file)
