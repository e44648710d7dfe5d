"""All that a report says of a policy, measured before and after by the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.data.question import Question
from lora_dpo.errors import UserError
from lora_dpo.evaluation import generation, multiple_choice, preference
from lora_dpo.evaluation.cost import divergence
from lora_dpo.evaluation.gathering import gather
from lora_dpo.evaluation.generation import Generation, Sample, Written
from lora_dpo.evaluation.multiple_choice import MultipleChoice, answers_of, compare_choices
from lora_dpo.evaluation.outcomes import Outcome
from lora_dpo.evaluation.perplexity import PLAIN_TEXT, perplexity, read_text
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import Preference, pair_scores, questions_of
from lora_dpo.evaluation.prompts import PromptStyle, encode
from lora_dpo.evaluation.scoring import score_both
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import Recipe


class Cost(TypedDict):
    """What the change has cost: distance from the reference, and prediction of text that has nothing to do with it.

    `kl_per_token` is None where no answer was sampled.
    """

    kl_per_token: float | None
    perplexity_before: float
    perplexity_after: float
    text: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated, and on what.

    Attributes:
        policies: The model before and after.
        encoder: Its template and tokenizer.
        pairs: Held-out pairs.
        questions: Held-out questions with all their answers; there are none in most preference data.
    """

    policies: Policies
    encoder: TurnEncoder
    pairs: list[TokenisedPair]
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found; parts for which there is no data are None or empty.

    Attributes:
        preference: On the held-out pairs.
        multiple_choice: On the held-out questions.
        outcomes: Both, and the answers' style, question by question.
        generation: Of the answers.
        cost: What the change has cost.
        samples: Answers side by side.
    """

    preference: Preference | None = None
    multiple_choice: MultipleChoice | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    generation: Generation | None = None
    cost: Cost | None = None
    samples: list[Sample] = field(default_factory=list)


def check_evaluation(recipe: Recipe, questions: Sequence[Question]) -> None:
    """Checks what an evaluation needs, before hours of training.

    Args:
        recipe: The recipe.
        questions: The held-out questions.

    Raises:
        UserError: A judge is asked for where there is nothing to judge or to measure it by, or the text cannot be read.
    """
    options = recipe.evaluation
    if options.judges and options.samples == 0:
        raise UserError("evaluation.judges has nothing to judge: evaluation.samples is 0.", fix="Raise it, as to 100.")
    if options.judges and not questions:
        raise UserError(
            "evaluation.judges names a judge, but no held-out question has labelled answers.",
            why="A judge is reported with its agreement with people, which is measured on such answers.",
            fix="Leave the judges out, or use data with correct and incorrect answers, as TruthfulQA has them.",
        )
    if options.text is not None:
        read_text(Path(options.text).expanduser())


def evaluate(work: Work, subject: Subject, recipe: Recipe, style: PromptStyle = "chat") -> Measured:
    """Measures before and after; every process must call it.

    Args:
        work: How the forward passes are carried out.
        subject: What is evaluated.
        recipe: Its `evaluation` section, `dpo.beta` for the implicit reward, and the seed.
        style: How multiple-choice questions are put.
    """
    options, seed = recipe.evaluation, recipe.run.seed
    policies, encoder = subject.policies, subject.encoder
    asked = [encode(style, encoder, question.prompt, answers_of(question)) for question in subject.questions]
    # Put as a chat, pairs are made of the answers that are asked for, so questions come first: as whole trees.
    found = score_both(work, policies, [*asked, *questions_of(subject.pairs)], batch_size=options.batch_size)
    scores = pair_scores(subject.pairs, found) if subject.pairs else None
    choices = compare_choices(subject.questions, asked, found)
    written = generation.write(work, policies, encoder, subject.pairs, options, seed=seed)
    by_group = {question.group: question for question in subject.questions}
    return Measured(
        preference=preference.summarise(scores, beta=recipe.dpo.beta, seed=seed) if scores is not None else None,
        multiple_choice=multiple_choice.summarise(choices, encoder, style, seed=seed) if choices else None,
        outcomes=gather(subject.pairs, scores, choices, written),
        generation=generation.summarise(work, written, by_group, options, seed=seed) if written.asked else None,
        cost=_cost(work, subject, recipe, written),
        samples=written.samples(),
    )


def _cost(work: Work, subject: Subject, recipe: Recipe, written: Written) -> Cost:
    options, policies = recipe.evaluation, subject.policies
    file = PLAIN_TEXT if options.text is None else Path(options.text).expanduser()
    text = perplexity(work, policies, subject.encoder, read_text(file), batch_size=options.batch_size)
    answers = [answer["ids"] for answer in written.sampled["after"]]
    moved = divergence(work, policies, written.prompts, answers, batch_size=options.batch_size) if answers else None
    return {
        "kl_per_token": None if moved is None else moved["per_token"],
        "perplexity_before": text["before"],
        "perplexity_after": text["after"],
        "text": file.name,
    }
