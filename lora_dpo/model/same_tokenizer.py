"""Whether what was trained reads text as its base does; if not, before and after would be asked different things."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from lora_dpo.errors import UserError
from lora_dpo.hub_errors import offline_unless_reachable
from lora_dpo.model.location import find_file
from lora_dpo.recipe.schema import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL = ("bos_token", "eos_token", "unk_token")
_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt"]
_PROBE = 'Why is the sky blue?\n\n  It\'s 1,234 km away – naïvely put: "far".\tSo?'


def check_same_tokenizer(base: PreTrainedTokenizerBase, model: ModelSection, place: str, *, chats: bool) -> None:
    """Compares the tokenizer that lies beside an adapter or a model, if one does, with its base's.

    Args:
        base: The base's tokenizer.
        model: The base.
        place: The adapter or model: local folder or Hub id.
        chats: Whether turns are written by the chat template.

    Raises:
        UserError: They differ; the first difference is named.
    """
    if find_file(place, "tokenizer_config.json") is None:
        return
    difference = _difference(base, read_tokenizer(place, model), chats=chats)
    if difference is not None:
        template = "chat template" in difference
        raise UserError(
            f"The tokenizer of {place} is not that of its base {model.name}: {difference}.",
            why="The same text would be other tokens, so before and after could not be compared.",
            fix="Name the base that it was trained on"
            + (", or leave the template out with model.template=plain." if template else "."),
        )


def read_tokenizer(place: str, model: ModelSection) -> PreTrainedTokenizerBase:
    """Reads the tokenizer that lies beside an adapter or a model.

    Args:
        place: Local folder or Hub id.
        model: The base.

    Raises:
        UserError: It cannot be read.
    """
    try:
        folder = Path(place).expanduser()
        if not folder.is_dir():  # by its Hub id it would not be read where an adapter has no config.json
            with offline_unless_reachable():
                folder = Path(snapshot_download(place, allow_patterns=_FILES))
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"The tokenizer beside {place} cannot be read: {str(error).splitlines()[0]}",
            fix="Copy it again, or remove its files: then the base's alone is read.",
        ) from error


def _difference(base: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, *, chats: bool) -> str | None:
    known, other = base.get_vocab(), own.get_vocab()
    if known != other:
        differing = (token for token in known.keys() | other.keys() if known.get(token) != other.get(token))
        token = min(differing, key=lambda token: (known.get(token, other.get(token)), token))
        numbers = [f"token {ids[token]}" if token in ids else "no token" for ids in (other, known)]
        return f"{token!r} is {numbers[0]} there, {numbers[1]} in the base"
    for name in _SPECIAL:
        if getattr(base, name) != getattr(own, name):
            return f"its {name} is {getattr(own, name)!r}, the base's {getattr(base, name)!r}"
    if base(_PROBE)["input_ids"] != own(_PROBE)["input_ids"]:
        return f"it cuts {_PROBE!r} into other tokens"
    if chats and (base.chat_template or "").strip() != (own.chat_template or "").strip():
        return "its chat template is another one" if own.chat_template else "it has no chat template"
    return None
