"""The text on which a merged model is compared with what it was made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_dpo.data.chat import TokenisedExample, TurnEncoder
from lora_dpo.data.example import Example
from lora_dpo.data.manifest import read_data
from lora_dpo.data.pair import Pair
from lora_dpo.data.sources import load_pairs
from lora_dpo.recipe.run_folder import RunFolder
from lora_dpo.recipe.schema import DataSection
from lora_dpo.tree.sequences import Completion

_BUNDLED = "bundled/misconceptions"
_COUNT = 16
_ANSWER_TOKENS = 32
_LONGEST = 1024
"""Prompt and answer; a longer question is passed over."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Questions with an answer each, which the models read.

    Attributes:
        source: Where they are from.
        questions: The questions, in words.
        prompts: The questions, as token ids.
        sequences: Each question with the beginning of its chosen (or learnt) answer, which is what is compared.
    """

    source: str
    questions: list[str]
    prompts: list[list[int]]
    sequences: list[Completion]

    @property
    def tokens(self) -> int:
        """Tokens that are compared."""
        return sum(sequence.n_scored for sequence in self.sequences)


def find_probes(run: RunFolder | None, encoder: TurnEncoder, positions: int | None) -> Probes:
    """Takes questions of a run's test split, and bundled ones where these are few.

    Args:
        run: A run, if the adapter is one's.
        encoder: The model's template and tokenizer.
        positions: How many tokens the model can read; None is any number.
    """
    sources, taken = [], []
    if run is not None and any((run.data / file).is_file() for file in ("pairs.jsonl", "examples.jsonl")):
        taken = _first_ones(read_data(run.data)["test"], encoder, positions, _COUNT)
        sources = [f"the test split of {run.path}"] * bool(taken)
    if len(taken) < _COUNT:
        bundled = load_pairs(DataSection(path=_BUNDLED)).by_source[0]
        taken += _first_ones(bundled, encoder, positions, _COUNT - len(taken))
        sources.append(_BUNDLED)
    return Probes(
        source=" and ".join(sources),
        questions=[one.prompt[-1]["content"] for one in taken],
        prompts=[one.prompt_ids for one in taken],
        sequences=[Completion.of(one.prompt_ids, one.answer_ids[:_ANSWER_TOKENS]) for one in taken],
    )


def _first_ones(
    data: Iterable[Pair | Example], encoder: TurnEncoder, positions: int | None, count: int
) -> list[TokenisedExample]:
    """Returns one answer to each of the first questions that are not too long; of pairs it is the chosen one."""
    longest = min(positions or _LONGEST, _LONGEST) - _ANSWER_TOKENS
    answers = [Example(one.prompt, one.chosen, one.group) if isinstance(one, Pair) else one for one in data]
    first: dict[str, TokenisedExample] = {}
    for one in encoder.encode_examples(answers):
        if len(one.prompt_ids) <= longest:
            first.setdefault(one.group, one)
        if len(first) == count:
            break
    return list(first.values())
