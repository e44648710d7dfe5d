from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_dpo.errors import UserError
from lora_dpo.evaluation.judges.choice import load_judge
from lora_dpo.evaluation.judges.embedding import EmbeddingJudge
from lora_dpo.evaluation.judges.reward import RewardJudge
from lora_dpo.evaluation.judges.truth import TruthJudge
from lora_dpo.evaluation.work import Work
from tests.evaluation.judges.models import save_chat_reward, save_encoder


def test_the_model_says_which_judge_it_is(tiny_models, tmp_path: Path) -> None:
    for kind, folder in (
        (EmbeddingJudge, save_encoder(tmp_path / "encoder")),
        (RewardJudge, save_chat_reward(tmp_path / "reward")),
        (TruthJudge, tiny_models("llama")),
    ):
        judge = load_judge(Work(), str(folder), batch_size=2)
        assert type(judge) is kind
        assert judge.name == str(folder)


@pytest.mark.parametrize("architectures", [["BertForTokenClassification"], None])
def test_a_model_that_cannot_judge(architectures: list[str] | None, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    found = "BertForTokenClassification" if architectures else "model that does not say its kind"
    with pytest.raises(UserError, match=f"is a {found}, which cannot judge answers"):
        load_judge(Work(), str(folder), batch_size=2)
