"""Perplexity of both policies on text that has nothing to do with the training: what was forgotten?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch

from lora_dpo.data.chat import TurnEncoder
from lora_dpo.errors import UserError
from lora_dpo.evaluation.logits import bounded_batches, log_probs, scored_logits
from lora_dpo.evaluation.policies import Policies
from lora_dpo.evaluation.work import Work, name_of
from lora_dpo.tree.sequences import Completion

PLAIN_TEXT = Path(__file__).with_name("plain_text.txt")
"""Prose about everyday things, written for this project."""
_WINDOW = 1024


class Perplexity(TypedDict):
    """Perplexity before and after, and what it is made of.

    Attributes:
        before: exp(sum(nats_before) / sum(tokens)).
        after: exp(sum(nats_after) / sum(tokens)).
        nats_before: For each window -log p of its tokens, summed.
        nats_after: The same after training.
        tokens: Tokens of each window that are predicted.
    """

    before: float
    after: float
    nats_before: list[float]
    nats_after: list[float]
    tokens: list[int]


def read_text(file: Path) -> str:
    """Returns the text of a file.

    Raises:
        UserError: There is no such file, or it is no text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise UserError(f"The text {file} cannot be read: {error.strerror or error}") from error


def perplexity(work: Work, policies: Policies, encoder: TurnEncoder, text: str, *, batch_size: int) -> Perplexity:
    """Measures the perplexity of a text before and after, both on the same windows in the same batches.

    The text's tokens are cut into windows without overlap, of as many tokens as the model has positions but at most
    1024. A window begins with the BOS token where the model's texts do, and all of its text is predicted; otherwise
    its first token is not.

    Args:
        work: How the forward passes are carried out.
        policies: The two policies.
        encoder: How text becomes tokens.
        text: The text.
        batch_size: Windows read at once.

    Raises:
        UserError: The text is too short for a token to be predicted.
    """
    windows = _windows(encoder, text, policies.trained.config.get_text_config())

    def compute(batch: list[Completion]) -> list[tuple[float, float]]:
        nats = [(0.0, 0.0)] * len(batch)
        for places in bounded_batches(policies.trained, batch):
            read = [batch[place] for place in places]
            with policies.before() as model:
                before = _nats(model, read)
            with policies.after() as model:
                after = _nats(model, read)
            for place, *pair in zip(places, before, after, strict=True):
                nats[place] = (pair[0], pair[1])
        return nats

    names = [name_of(window.ids.tolist(), window.start) for window in windows]
    nats = work.map("perplexity", windows, names, compute, batch_size=batch_size, size=lambda window: len(window.ids))
    tokens = [window.n_scored for window in windows]
    before, after = ([float(pair[when]) for pair in nats] for when in (0, 1))
    return {
        "before": math.exp(math.fsum(before) / sum(tokens)),
        "after": math.exp(math.fsum(after) / sum(tokens)),
        "nats_before": before,
        "nats_after": after,
        "tokens": tokens,
    }


def _windows(encoder: TurnEncoder, text: str, config: object) -> list[Completion]:
    tokenizer = encoder.tokenizer
    start = [tokenizer.bos_token_id] if encoder.adds_bos else []
    size = min(_WINDOW, getattr(config, "max_position_embeddings", None) or _WINDOW) - len(start)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cut = [start + ids[place : place + size] for place in range(0, len(ids), size)]
    windows = [Completion.of(window[:1], window[1:]) for window in cut if len(window) > 1]
    if not windows:
        raise UserError(
            f"The text has {len(ids)} tokens, which is too short for a perplexity.", fix="Give a text of some pages."
        )
    return windows


def _nats(model: torch.nn.Module, windows: Sequence[Completion]) -> list[float]:
    logits = scored_logits(model, windows)
    targets = torch.cat([torch.from_numpy(window.ids[window.start :]).long() for window in windows]).to(logits.device)
    found, done = [], 0
    for (part,) in log_probs(logits):
        found.append(part.gather(-1, targets[done : done + len(part), None]).double().cpu())
        done += len(part)
    values = -torch.cat(found).squeeze(-1)
    return [own.sum().item() for own in values.split([window.n_scored for window in windows])]
