"""What a subject is measured on: its run's own held-out data, or a test set that its training has not met."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_dpo.data.build import prepare_test
from lora_dpo.data.chat import TokenisedPair, TurnEncoder
from lora_dpo.data.length import fit_length
from lora_dpo.data.manifest import read_manifest, read_pairs, read_questions
from lora_dpo.data.near_duplicates import near_duplicates
from lora_dpo.data.pair import Message, Pair, group_of
from lora_dpo.data.question import Question
from lora_dpo.errors import UserError
from lora_dpo.evaluation.caveats import caveats_of_data
from lora_dpo.model.base import load_config, resolve
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_TRAINING = "Its training data is unknown, so overlap with what it is measured on could not be checked."


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Data to measure on; all of it may be empty.

    Attributes:
        encoder: How turns become tokens.
        pairs: Pairs.
        questions: Questions with all their answers.
        counts: Of the splits, as `lora-dpo data --json` prints them.
        caveats: What the data means for the numbers, a sentence each.
    """

    encoder: TurnEncoder
    pairs: list[TokenisedPair] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)


def own_data(run: RunFolder, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Reads the test split of a run.

    Raises:
        UserError: A file is damaged, or held-out questions were trained on.
    """
    manifest = read_manifest(run.data / "splits.json")
    if both := set(manifest["train"]["group_ids"]) & set(manifest["test"]["group_ids"]):
        raise UserError(
            f"{len(both)} held-out questions of {run.path} stand in its training data too.",
            why="What was trained on measures nothing.",
            fix="Train again: `lora-dpo data RECIPE` shows splits that do not overlap.",
        )
    encoder = TurnEncoder(tokenizer, recipe.model.template)
    pairs = list(encoder.encode(read_pairs(run.data / "pairs.jsonl")["test"]))
    fitted = fit_length(pairs, recipe.dpo.max_length, recipe.data.over_length, tokenizer.bos_token_id)
    questions = run.data / "questions.jsonl"
    if run.is_complete:
        counts = json.loads(run.report_json.read_text(encoding="utf-8"))["data"]
    else:  # a checkpoint may be measured while the run goes on
        shown = ("pairs", "groups", "hash")
        counts = {"splits": {split: {key: entry[key] for key in shown} for split, entry in manifest.items()}}
    return HeldOut(
        encoder=encoder,
        pairs=fitted.pairs,
        questions=read_questions(questions)["test"] if questions.is_file() else [],
        counts=counts,
        caveats=list(caveats_of_data(recipe, counts)),
    )


def other_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, run: RunFolder | None) -> HeldOut:
    """Reads a test set from elsewhere.

    Args:
        recipe: A recipe whose data section is the test set.
        tokenizer: The model's tokenizer.
        run: The run whose training must not have met it; None where that cannot be known.

    Raises:
        UserError: It cannot be read, is empty, or holds questions that were trained on.
    """
    prepared = prepare_test(_within_positions(recipe), tokenizer)
    pairs, questions = prepared.splits["test"], prepared.questions["test"]
    caveats = [UNKNOWN_TRAINING] if run is None else []
    if run is not None:
        trained = _trained_on(run)
        _refuse_trained(run, trained, pairs, questions)
        caveats += _near(trained, [pair.pair for pair in pairs])
        caveats += _goes_on_from(recipe)
    return HeldOut(prepared.encoder, pairs, questions, prepared.summary(), caveats)


def _within_positions(recipe: Recipe) -> Recipe:
    """Bounds the pairs' length by what the model can read: a default knows nothing of the model."""
    config = load_config(resolve(recipe.model), recipe.model).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or recipe.dpo.max_length <= positions:
        return recipe
    return recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"max_length": positions})})


def _trained_on(run: RunFolder) -> list[Pair]:
    """Returns the pairs that training has seen, to learn from or to be stopped and tuned by."""
    pairs = read_pairs(run.data / "pairs.jsonl")
    return [*pairs["train"], *pairs["validation"]]


def _refuse_trained(
    run: RunFolder, trained: Sequence[Pair], pairs: Sequence[TokenisedPair], questions: Sequence[Question]
) -> None:
    # By their prompts: the groups of two files may be numbered alike, and be other questions.
    known = {group_of(pair.prompt) for pair in trained}
    prompts = {group_of(prompt): prompt for prompt in (*(pair.pair.prompt for pair in pairs), *_prompts(questions))}
    met = [prompt for group, prompt in prompts.items() if group in known]
    if met:
        raise UserError(
            f"{len(met)} of the {len(prompts)} questions of the test set stand in the training data of {run.path}, "
            f"such as '{_words(met[0])}'.",
            why="What was trained on, or tuned by, measures nothing; leaving it out would be another test set.",
            fix="Take these questions out of the file, or measure on the run's own held-out data, without --data.",
        )


def _near(trained: Sequence[Pair], tested: Sequence[Pair]) -> Iterator[str]:
    found = near_duplicates({"train": trained, "test": tested})
    if found:
        first = found[0]
        texts = (first.prompt_a, first.prompt_b) if first.split_a == "test" else (first.prompt_b, first.prompt_a)
        yield (
            f"{len(found)} {'questions are' if len(found) > 1 else 'question is'} nearly the same text as a question "
            f"that was trained on: '{texts[0]}' and '{texts[1]}'."
        )


def _goes_on_from(recipe: Recipe) -> Iterator[str]:
    if recipe.adapter.init_from is not None:
        yield f"It goes on from {recipe.adapter.init_from}, whose own training data was not looked at."


def _prompts(questions: Sequence[Question]) -> Iterator[tuple[Message, ...]]:
    return (question.prompt for question in questions)


def _words(prompt: tuple[Message, ...]) -> str:
    return " ".join(prompt[-1]["content"].split())
