from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from lora_dpo.errors import UserError
from lora_dpo.model.base import load_tokenizer
from lora_dpo.model.same_tokenizer import check_same_tokenizer
from lora_dpo.recipe.schema import ModelSection


@pytest.fixture
def beside(tiny_models, tmp_path: Path):
    """Returns a function that saves a changed tokenizer as an adapter's, and compares it with its base's."""
    section = ModelSection(name=str(tiny_models("llama")))

    def check(change=lambda tokenizer: None, *, chats: bool = True) -> None:
        own = AutoTokenizer.from_pretrained(section.name)
        change(own)
        own.save_pretrained(tmp_path / "adapter")
        check_same_tokenizer(load_tokenizer(section), section, str(tmp_path / "adapter"), chats=chats)

    return check


def adds_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens([AddedToken("<extra>")])


def ends_otherwise(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.eos_token = "<|eot_id|>"


def chats_otherwise(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "human") + "{{ 'x' }}"


def chats_not(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None


def begins_otherwise(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


def pads_otherwise(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.pad_token = "<|begin_of_text|>"
    tokenizer.padding_side = "left"


def test_the_same_tokenizer_is_taken(beside) -> None:
    beside()
    beside(pads_otherwise)  # which changes no text


def test_without_a_tokenizer_there_is_nothing_to_compare(tiny_models, tmp_path: Path) -> None:
    section = ModelSection(name=str(tiny_models("llama")))
    check_same_tokenizer(load_tokenizer(section), section, str(tmp_path), chats=True)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (adds_a_token, r"'<extra>' is token 600 there, no token in the base"),
        (ends_otherwise, r"its eos_token is '<\|eot_id\|>', the base's '<\|end_of_text\|>'"),
        (begins_otherwise, r"it cuts 'Why is the sky blue\?.* into other tokens"),
        (chats_otherwise, "its chat template is another one"),
        (chats_not, "it has no chat template"),
    ],
)
def test_the_first_difference_is_named(change, difference: str, beside) -> None:
    with pytest.raises(UserError, match=rf"is not that of its base .*: {difference}\.\nThe same text would be other"):
        beside(change)


def test_templates_matter_only_where_the_model_chats(beside) -> None:
    beside(chats_otherwise, chats=False)
    with pytest.raises(UserError, match=r"model\.template=plain\.$"):
        beside(chats_otherwise)


def test_a_damaged_tokenizer(tiny_models, tmp_path: Path) -> None:
    section = ModelSection(name=str(tiny_models("llama")))
    for file in Path(section.name).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="The tokenizer beside .* cannot be read"):
        check_same_tokenizer(load_tokenizer(section), section, str(tmp_path), chats=True)
