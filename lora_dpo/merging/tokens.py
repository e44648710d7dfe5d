"""Which tokenizer a merged model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_dpo.errors import UserError
from lora_dpo.model.lineage import tokenizer_hash
from lora_dpo.model.same_tokenizer import read_tokenizer
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer.

    Attributes:
        tokenizer: It itself, ready to pad.
        folder: Where its files are.
        same: Whether its tokens are those of the base.
    """

    tokenizer: PreTrainedTokenizerBase
    folder: Path
    same: bool


def choose_tokenizer(
    base: ModelSection, adapters: Sequence[Path], tokenizer: PreTrainedTokenizerBase, rows: int
) -> Tokens:
    """Returns the last adapter's tokenizer, with the chat template that it was trained with; else the base's.

    Args:
        base: The base model; its name is a local folder.
        adapters: The adapters' folders, in order.
        tokenizer: The base's tokenizer.
        rows: Rows of the base's embedding.

    Raises:
        UserError: A token has another number in the adapter's tokenizer than in the base's, or no row.
    """
    folder = next((folder for folder in reversed(adapters) if (folder / "tokenizer_config.json").is_file()), None)
    if folder is None:
        return Tokens(tokenizer, Path(base.name), same=True)
    own = read_tokenizer(str(folder), base)
    known, found = tokenizer.get_vocab(), own.get_vocab()
    moved = sorted((number, token) for token, number in known.items() if found.get(token) != number)
    if moved:
        number, token = moved[0]
        raise UserError(
            f"The tokenizer in {folder} is not that of the base {base.name}.",
            why=f"{token!r} is token {number} of the base and {found.get(token, 'none')} there; {len(moved)} differ. "
            f"The tokenizers' hashes are {tokenizer_hash(own)[:12]} and {tokenizer_hash(tokenizer)[:12]}.",
            fix="Give the base that the adapter was trained on with --base NAME.",
        )
    if beyond := sorted((number, token) for token, number in found.items() if number >= rows):
        number, token = beyond[-1]
        raise UserError(
            f"The tokenizer in {folder} has tokens that the base {base.name} has no row for.",
            why=f"{token!r} is token {number}, and the embedding has {rows} rows, 0 to {rows - 1}.",
            fix="Tokens were added without model.resize_token_embeddings(N) and training of the new rows; merge with a "
            "tokenizer without them.",
        )
    own.pad_token = own.pad_token or own.eos_token
    return Tokens(own, folder, same=tokenizer_hash(own) == tokenizer_hash(tokenizer))
