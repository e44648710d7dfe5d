"""What the arms train on: optimizer steps, each a list of tokenised pairs."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_dpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_dpo.data.chat import TokenisedPair


class TokenPair(NamedTuple):
    """One pair as token ids; the sequences are prompt + chosen and prompt + rejected."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


Step = list[TokenPair]


@dataclass(frozen=True, slots=True)
class Workload:
    """Pairs for as many optimizer steps as are run; every step has the same number.

    Attributes:
        name: The workload's name.
        steps: One list of pairs for each optimizer step; no pair is in two of them.
    """

    name: str
    steps: list[Step]

    @property
    def pairs_per_step(self) -> int:
        """Pairs of an optimizer step, all in one micro-batch."""
        return len(self.steps[0])


class Tokens(NamedTuple):
    """Tokens of one step.

    Attributes:
        padded: What TRL computes: 2 rows a pair, as long as the longest.
        trl: The same without padding, sum of 2P + C + R; the unit of "TRL-equivalent tokens".
        distinct: Distinct prefixes, the fewest that can be computed.
    """

    padded: int
    trl: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Text:
    """A workload that is made of a data set.

    Attributes:
        file: Where it is below the data folder.
        pairs: The recipe's `data.pairs`.
        max_length: The recipe's `dpo.max_length`.
        pairs_per_step: Pairs of an optimizer step.
    """

    file: str
    pairs: str
    max_length: int
    pairs_per_step: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """A workload of random tokens; every prompt has chosen x rejected pairs.

    Attributes:
        prompts: Prompts of a step.
        chosen: Better answers of a prompt.
        rejected: Worse answers of a prompt.
        prompt: Shortest and longest prompt, in tokens.
        answer: Shortest and longest answer, in tokens.
    """

    prompts: int
    chosen: int
    rejected: int
    prompt: tuple[int, int]
    answer: tuple[int, int]

    def shortened(self, factor: int) -> Lengths:
        """Returns the same with prompts and answers a `factor` shorter, and at most 2 x 2 answers of a prompt."""
        prompt, answer = (tuple(max(2, tokens // factor) for tokens in bounds) for bounds in (self.prompt, self.answer))
        return Lengths(min(self.prompts, 2), min(self.chosen, 2), min(self.rejected, 2), prompt, answer)


TEXTS = {
    "best": Text("truthfulqa/TruthfulQA.csv", "best", 256, 8),
    "all": Text("truthfulqa/TruthfulQA.csv", "all", 256, 64),
    "ultrafeedback": Text("ultrafeedback/train.jsonl", "best", 1024, 4),
}
LONG = Lengths(2, 1, 1, (700, 700), (60, 60))
NAMES = (*TEXTS, "long")

# The texts' lengths under SmolLM2's tokenizer, first to last decile; a TruthfulQA question has 3.5 x 4.1 answers in the
# mean. Random answers share no beginnings, so that trees gain less than on the texts.
LIKE_TEXTS = {
    "best": Lengths(8, 1, 1, (37, 51), (5, 18)),
    "all": Lengths(4, 4, 4, (37, 49), (5, 18)),
    "ultrafeedback": Lengths(4, 1, 1, (41, 404), (20, 560)),
    "long": LONG,
}


def from_file(
    file: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    *,
    pairs: str,
    max_length: int,
    pairs_per_step: int,
    n_steps: int,
    seed: int = 0,
) -> list[Step]:
    """Returns steps of a data file, prepared as the quickstart's recipe does.

    Questions come in a seeded order, with all their pairs one after the other; a step is filled before the next.

    Args:
        file: Preferences in any format that the project reads.
        tokenizer: The model's tokenizer.
        model: The recipe's `model.name`.
        pairs: The recipe's `data.pairs`.
        max_length: Longest prompt + answer, in tokens; longer pairs are dropped.
        pairs_per_step: Pairs of an optimizer step.
        n_steps: Optimizer steps.
        seed: Of the order.

    Raises:
        UserError: The file cannot be read, or has too few pairs.
    """
    from lora_dpo.data.build import prepare
    from lora_dpo.recipe.loading import load_recipe

    recipe = load_recipe(
        "quickstart",
        [
            f"model.name={model}",
            f"data.path={file}",
            f"data.pairs={pairs}",
            "data.split.test=0",
            "data.split.validation=0",
            f"dpo.max_length={max_length}",
        ],
    )
    ordered = _by_question(prepare(recipe, tokenizer).splits["train"], seed)
    if len(ordered) < n_steps * pairs_per_step:
        raise UserError(
            f"{file} has {len(ordered)} pairs of at most {max_length} tokens.",
            why=f"{n_steps} steps of {pairs_per_step} pairs, the warm-up among them, need {n_steps * pairs_per_step}.",
            fix="Lower --steps or --pairs-per-step.",
        )
    return [ordered[first : first + pairs_per_step] for first in range(0, n_steps * pairs_per_step, pairs_per_step)]


def _by_question(pairs: Sequence[TokenisedPair], seed: int) -> list[TokenPair]:
    questions: dict[str, list[TokenPair]] = defaultdict(list)
    for pair in pairs:
        questions[pair.pair.group].append(TokenPair(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    order = sorted(questions)
    random.Random(seed).shuffle(order)
    return [pair for question in order for pair in questions[question]]


def synthetic(lengths: Lengths, n_steps: int, vocabulary: int, seed: int = 0) -> list[Step]:
    """Returns steps of random tokens.

    Args:
        lengths: How many prompts and answers, and how long.
        n_steps: Optimizer steps.
        vocabulary: Tokens are drawn below it.
        seed: Of the tokens and lengths.
    """
    draw = random.Random(seed)

    def tokens(bounds: tuple[int, int]) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(draw.randint(*bounds))]

    def step() -> Step:
        pairs: Step = []
        for _ in range(lengths.prompts):
            prompt = tokens(lengths.prompt)
            chosen = [tokens(lengths.answer) for _ in range(lengths.chosen)]
            rejected = [tokens(lengths.answer) for _ in range(lengths.rejected)]
            pairs += [TokenPair(prompt, *answers) for answers in product(chosen, rejected)]
        return pairs

    return [step() for _ in range(n_steps)]


def count_tokens(step: Step) -> Tokens:
    """Counts a step's tokens; distinct prefixes by a plain trie, apart from the code that is measured."""
    sequences = [[*pair.prompt_ids, *answer] for pair in step for answer in (pair.chosen_ids, pair.rejected_ids)]
    trie: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        node = 0
        for token in sequence:
            node = trie.setdefault((node, token), len(trie) + 1)
    return Tokens(len(sequences) * max(map(len, sequences)), sum(map(len, sequences)), len(trie))
