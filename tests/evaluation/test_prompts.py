"""The benchmark's prompt and numbers are those of lm-evaluation-harness itself, run on the same questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import Harness
from lora_dpo.data.chat import TurnEncoder
from lora_dpo.data.question import Question
from lora_dpo.data.sources import load_pairs
from lora_dpo.evaluation.multiple_choice import answers_of, measure
from lora_dpo.evaluation.prompts import encode, render
from lora_dpo.evaluation.scoring import score_questions
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import DataSection
from lora_dpo.tree.hf import score_over_trees, takes_trees

COUNT = 24


def questions() -> list[Question]:
    rows = load_pairs(DataSection(path="bundled/misconceptions")).questions[:COUNT]
    # The authors' own file has some empty answers; the harness stumbles over one in the first question.
    return [rows[0], replace(rows[1], incorrect=(*rows[1].incorrect, "")), *rows[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "trees", "tolerance"),
    [(torch.float64, True, 1e-6), (torch.float64, False, 1e-6), (torch.float32, True, 1e-3)],
)
@torch.no_grad()
def test_the_numbers_are_the_harness_s(architecture, dtype, tolerance, trees, tiny_models, tmp_path) -> None:
    pytest.importorskip("lm_eval")
    folder = tiny_models(architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    asked = questions()
    expected = Harness(asked, tmp_path).run(model, tokenizer, batch_size=4)
    if trees:
        assert score_over_trees(model) is None
    assert takes_trees(model) == trees
    encoder = TurnEncoder(tokenizer)
    items = [encode("harness", encoder, question.prompt, answers_of(question)) for question in asked]
    scores = score_questions(Work(), model, items, "multiple choice", batch_size=4)
    assert len(expected["local_mc1"]) == len(expected["local_mc2"]) == COUNT
    for question, own, one, two in zip(asked, scores, expected["local_mc1"], expected["local_mc2"], strict=True):
        found = measure(question, own)
        assert one["arguments"][0][0] == render("harness", encoder, question.prompt)
        of = dict(zip(answers_of(question), own, strict=True))
        theirs = [score for ((score, _),) in two["resps"]]
        assert [of[answer] for answer in two["doc"]["mc2_targets"]["choices"]] == pytest.approx(theirs, abs=tolerance)
        assert found["mc2"] == pytest.approx(two["acc"], abs=tolerance)
        assert found["mc1"] == one["acc"]
