"""Measures tiny policies in as many processes as are started, and writes down what each of them has found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

from lora_dpo.data.pair import user
from lora_dpo.evaluation.answers import compare_answers
from lora_dpo.evaluation.cost import divergence
from lora_dpo.evaluation.judges.embedding import EmbeddingJudge
from lora_dpo.evaluation.perplexity import perplexity
from lora_dpo.evaluation.work import Work
from tests.evaluation.judges.models import PROMPTS, REFERENCES
from tests.evaluation.models import tiny_policies

QUESTIONS = ("Hi", "Why is the sky blue on a clear day?", "Do bats see?", "Is glass slow?", "What do bulls hate?")
TEXT = "The kettle was on before anyone had found the cups. Nobody minded. " * 90


def measure(model: Path, encoder: Path, work: Work) -> dict[str, Any]:
    """Returns all that is measured by forward passes."""
    policies, turns = tiny_policies(model)
    prompts = [turns.prompt_ids(user(question)) for question in QUESTIONS]
    sampled = compare_answers(work, policies, turns, prompts, max_new_tokens=8, batch_size=2, seed=4)
    own = [answer["ids"] for answer in sampled["after"]]
    judge = EmbeddingJudge(work, str(encoder), batch_size=2)
    return {
        "greedy": compare_answers(work, policies, turns, prompts, max_new_tokens=8, batch_size=2),
        "sampled": sampled,
        "divergence": divergence(work, policies, prompts, own, batch_size=2),
        "perplexity": perplexity(work, policies, turns, TEXT, batch_size=2),
        "agreement": judge.agreement(PROMPTS, REFERENCES),
        "scores": judge.scores(PROMPTS, ["Yes.", "Who knows?"], REFERENCES),
    }


if __name__ == "__main__":
    PartialState(cpu=True)
    model, encoder, folder = map(Path, sys.argv[1:])
    state = PartialState()
    found = measure(model, encoder, Work(folder / "kept"))
    (folder / f"{state.process_index}.json").write_text(json.dumps({"world": state.num_processes, **found}))
