"""All that a report says of a policy, measured before and after by the same code."""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.data.question import Question
from lora_dpo.evaluation import multiple_choice, preference
from lora_dpo.evaluation.multiple_choice import Choice, MultipleChoice, compare_choices
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.preference import Preference, score_pairs
from lora_dpo.evaluation.prompts import PromptStyle
from lora_dpo.evaluation.samples import Sample, draw_samples
from lora_dpo.evaluation.work import Work
from lora_dpo.recipe.schema import Recipe


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
        choices: The same, question by question.
        samples: Answers side by side.
    """

    preference: Preference | None = None
    multiple_choice: MultipleChoice | None = None
    choices: list[Choice] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


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
    found = None
    if subject.pairs:
        scores = score_pairs(work, policies, subject.pairs, batch_size=options.batch_size)
        found = preference.summarise(scores, beta=recipe.dpo.beta, seed=seed)
    choices = []
    if subject.questions:
        choices = compare_choices(work, policies, encoder, subject.questions, style, batch_size=options.batch_size)
    return Measured(
        preference=found,
        multiple_choice=multiple_choice.summarise(choices, encoder, style, seed=seed) if choices else None,
        choices=choices,
        samples=draw_samples(
            work,
            policies,
            encoder,
            subject.pairs,
            count=options.samples,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
        ),
    )
