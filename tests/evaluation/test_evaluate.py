from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.data.pair import group_of, user
from lora_dpo.data.question import Question
from lora_dpo.errors import UserError
from lora_dpo.evaluation.evaluate import Measured, Subject, check_evaluation, evaluate
from lora_dpo.evaluation.perplexity import PLAIN_TEXT
from lora_dpo.evaluation.work import Work
from tests.evaluation.models import tiny_policies
from tests.small import preferences, small_recipe

SKY = user("Why is the sky blue?")
QUESTION = Question(SKY, ("Air.",), ("The sea.", "Paint."), "Air.", "Paint.", "Light", group_of(SKY))


@pytest.fixture(scope="module")
def policies(tiny_models):
    return tiny_policies(tiny_models("llama"))


def measured(policies, folder: Path, *, pairs: int, questions: list[Question], samples: int) -> Measured:
    both, encoder = policies
    recipe = small_recipe("unused", folder, evaluation={"samples": samples, "max_new_tokens": 4})
    return evaluate(Work(), Subject(both, encoder, list(encoder.encode(preferences(pairs))), questions), recipe)


def test_everything_at_once(policies, tmp_path: Path) -> None:
    found = measured(policies, tmp_path, pairs=3, questions=[QUESTION], samples=2)
    assert found.preference["n_pairs"] == 3
    assert found.multiple_choice["mc2"]["n"] == 1
    assert found.multiple_choice["mc2"]["before"] != found.multiple_choice["mc2"]["after"]
    assert found.generation["n"] == 2
    assert found.cost["kl_per_token"] > 0
    assert found.cost["perplexity_before"] != found.cost["perplexity_after"]
    assert found.cost["text"] == PLAIN_TEXT.name
    assert len(found.samples) == 2
    sky, *others = found.outcomes
    assert (sky.category, sky.after.keys() >= {"mc0", "mc1", "mc2", "margin", "tokens"}) == ("Light", True)
    assert sky.after["mc2"] == found.multiple_choice["mc2"]["after"]
    assert len(others) == 2


def test_what_there_is_no_data_for_is_none(policies, tmp_path: Path) -> None:
    found = measured(policies, tmp_path, pairs=2, questions=[], samples=0)
    assert (found.multiple_choice, found.generation, found.samples) == (None, None, [])
    assert found.preference["n_pairs"] == 2
    assert found.cost["kl_per_token"] is None
    nothing = measured(policies, tmp_path, pairs=0, questions=[], samples=2)
    assert (nothing.preference, nothing.generation, nothing.outcomes) == (None, None, [])


@pytest.mark.parametrize(
    ("options", "questions", "message"),
    [
        ({"judges": "org/judge", "samples": 0}, [QUESTION], "evaluation.judges has nothing to judge"),
        ({"judges": "org/judge"}, [], "no held-out question has labelled answers"),
        ({"text": "nowhere.txt"}, [], "The text nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_training(
    options: dict, questions: list[Question], message: str, tmp_path: Path
) -> None:
    recipe = small_recipe("unused", tmp_path, evaluation=options)
    with pytest.raises(UserError, match=message):
        check_evaluation(recipe, questions)


def test_what_can_be_measured_is_let_through(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.", encoding="utf-8")
    check_evaluation(small_recipe("unused", tmp_path, evaluation={"text": str(text), "judges": "judge"}), [QUESTION])
