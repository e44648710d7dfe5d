from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_dpo.errors import UserError
from lora_dpo.evaluation.judges.reward import RewardJudge
from lora_dpo.evaluation.work import Work
from tests.evaluation.judges.models import PROMPTS, REFERENCES, save_chat_reward, save_encoder, save_pair_reward
from tests.tiny import save_tiny_model

ANSWERS = ["Yes, they see quite well, above all at dusk.", "Blue"]


@torch.no_grad()
def chat_reward(folder: Path, question: str, answer: str) -> float:
    """The logit at the last token of the conversation, by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return model.score(hidden).item()


@torch.no_grad()
def pair_reward(folder: Path, question: str, answer: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(**tokenizer(question, answer, return_tensors="pt")).logits.item()


@pytest.mark.parametrize(("save", "naive"), [(save_chat_reward, chat_reward), (save_pair_reward, pair_reward)])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_reward_of_the_conversation(save, naive, batch_size: int, tmp_path: Path) -> None:
    folder = save(tmp_path)
    judge = RewardJudge(Work(), str(folder), batch_size=batch_size)
    asked = [(prompt[0]["content"], answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    expected = [naive(folder, *pair) for pair in asked]
    assert judge.scores(PROMPTS, ANSWERS, REFERENCES) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_agreement_of_pairs(tmp_path: Path) -> None:
    folder = save_pair_reward(tmp_path)
    agreed = 0
    for prompt, given in zip(PROMPTS, REFERENCES, strict=True):
        rewards = [[pair_reward(folder, prompt[0]["content"], answer) for answer in side] for side in given]
        agreed += sum(better > worse for better in rewards[0] for worse in rewards[1])
    judge = RewardJudge(Work(), str(folder), batch_size=4)
    expected = {"of": "pairs", "agreement": pytest.approx(agreed / 10), "majority": 0.5, "n": 10}
    assert judge.agreement(PROMPTS, REFERENCES) == expected


def test_classifier_of_several_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="It has 3 labels: LABEL_0, LABEL_1, LABEL_2"):
        RewardJudge(Work(), str(save_pair_reward(tmp_path, labels=3)), batch_size=2)


def test_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a BertModel, which is not a reward model"):
        RewardJudge(Work(), str(save_encoder(tmp_path)), batch_size=2)


def test_language_model_under_the_name_of_a_classifier(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    changed = config | {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "reward"}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"not a reward model.\nIt has no weights for score\.weight"):
        RewardJudge(Work(), str(folder), batch_size=2)
