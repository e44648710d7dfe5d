from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lora_dpo.errors import UserError
from lora_dpo.evaluation.judges.truth import TruthJudge
from lora_dpo.evaluation.work import Work
from tests.evaluation.judges.models import PROMPTS, REFERENCES, save_encoder

ANSWERS = ["Yes, they see quite well, above all at dusk.", "Blue"]


@torch.no_grad()
def yes_against_no(folder: Path, question: str, answer: str) -> float:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    text = f"Q: {question}\nA: {answer}\nTrue:"
    prompt, yes, no = (tokenizer(text + word)["input_ids"] for word in ("", " yes", " no"))
    shares = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    p_yes, p_no = shares[yes[len(prompt)]], shares[no[len(prompt)]]
    return (p_yes / (p_yes + p_no)).item()


@pytest.fixture
def folder(tiny_models, tmp_path: Path) -> Path:
    """A model that says yes and no by tokens of their own, with the question deciding."""
    source = tiny_models("llama")
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 2])
def test_probability_of_yes(batch_size: int, folder: Path) -> None:
    judge = TruthJudge(Work(), str(folder), batch_size=batch_size)
    asked = [(prompt[0]["content"], answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    expected = [yes_against_no(folder, *pair) for pair in asked]
    assert judge.scores(PROMPTS, ANSWERS, REFERENCES) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_agreement_of_answers(folder: Path) -> None:
    agreed = 0
    for prompt, given in zip(PROMPTS, REFERENCES, strict=True):
        for is_correct, side in zip((True, False), given, strict=True):
            agreed += sum((yes_against_no(folder, prompt[0]["content"], answer) > 0.5) == is_correct for answer in side)
    judge = TruthJudge(Work(), str(folder), batch_size=4)
    expected = {"of": "answers", "agreement": pytest.approx(agreed / 9), "majority": pytest.approx(5 / 9), "n": 9}
    assert judge.agreement(PROMPTS, REFERENCES) == expected


def test_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a BertModel, which is not a language model") as error:
        TruthJudge(Work(), str(save_encoder(tmp_path)), batch_size=2)
    assert "truth judge" in error.value.fix


def test_tokenizer_that_begins_both_words_alike(folder: Path) -> None:
    letters = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(ByteLevel.alphabet())}, merges=[]))
    letters.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="!").save_pretrained(folder)
    with pytest.raises(UserError, match="Its tokenizer has no token of its own for ' yes' and ' no'"):
        TruthJudge(Work(), str(folder), batch_size=2)
