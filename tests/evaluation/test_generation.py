from __future__ import annotations

from pathlib import Path

import pytest

from lora_dpo.data.pair import Pair, group_of, user
from lora_dpo.data.question import Question
from lora_dpo.evaluation.generation import Written, summarise, write
from lora_dpo.evaluation.style import style_of
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import EvaluationSection
from tests.evaluation.judges.models import save_encoder
from tests.evaluation.models import tiny_policies

QUESTIONS = ["Why is the sky blue?", "Do bats see?", "What do bulls hate?"]


def pairs_of(*texts: str) -> list[Pair]:
    return [Pair(user(text), f"Good {n}.", "Bad.", group_of(user(text))) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def policies(tiny_models):
    return tiny_policies(tiny_models("llama"))


@pytest.fixture(scope="module")
def written(policies) -> Written:
    both, encoder = policies
    pairs = list(encoder.encode(pairs_of(QUESTIONS[0], QUESTIONS[0], *QUESTIONS[1:])))
    options = EvaluationSection(samples=2, max_new_tokens=6)
    return write(Work(), both, encoder, pairs, options, seed=3)


def test_each_of_the_first_questions_is_asked_once(written: Written) -> None:
    assert [pair.pair.prompt[-1]["content"] for pair in written.asked] == QUESTIONS[:2]
    assert [sample["prompt"] for sample in written.samples()] == QUESTIONS[:2]
    assert [sample["chosen"] for sample in written.samples()] == ["Good 0.", "Good 2."]
    for when in ("before", "after"):
        assert [sample[when] for sample in written.samples()] == [answer["text"] for answer in written.greedy[when]]
        assert all(len(answer["ids"]) <= 6 for answer in written.sampled[when])
    assert written.greedy != written.sampled


def test_no_samples_asks_nothing(policies) -> None:
    both, encoder = policies
    pairs = list(encoder.encode(pairs_of(*QUESTIONS)))
    nothing = write(Work(), both, encoder, pairs, EvaluationSection(samples=0), seed=3)
    assert (nothing.asked, nothing.samples()) == ([], [])


def test_style_is_compared_greedy_and_sampled(written: Written) -> None:
    found = summarise(Work(), written, {}, EvaluationSection(samples=2, max_new_tokens=6), seed=0)
    assert (found["n"], found["max_new_tokens"], found["judges"]) == (2, 6, [])
    for kind, answers in (("greedy", written.greedy), ("sampled", written.sampled)):
        for when in ("before", "after"):
            tokens = style_of(answers[when])["tokens"]
            assert found[kind]["tokens"][when] == pytest.approx(sum(tokens) / 2)
            assert found[kind]["tokens"]["n"] == 2


def test_a_judge_judges_only_what_has_labelled_answers_and_shows_its_agreement(
    written: Written, tmp_path: Path
) -> None:
    group = written.asked[1].pair.group
    bats = Question(user(QUESTIONS[1]), ("Yes.", "They see."), ("No.", "Bats are blind."), "Yes.", "No.", "", group)
    judge = save_encoder(tmp_path / "encoder")
    options = EvaluationSection(samples=2, max_new_tokens=6, judges=[str(judge)])
    (judged,) = summarise(Work(), written, {group: bats}, options, seed=0)["judges"]
    assert judged["judge"] == str(judge)
    assert (judged["agreement"]["of"], judged["agreement"]["n"]) == ("answers", 4)
    assert judged["score"]["n"] == sum(judged["wins"].values()) == 1
