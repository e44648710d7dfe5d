from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lora_dpo.errors import UserError
from lora_dpo.evaluation.judges.base import References
from lora_dpo.evaluation.judges.embedding import EmbeddingJudge
from lora_dpo.evaluation.work import Work
from tests.conftest import REPOSITORY
from tests.evaluation.judges.models import PROMPTS, REFERENCES, save_chat_reward, save_encoder
from tests.machine import needs_deepspeed
from tests.process import run_python

ANSWERS = ["Yes, they see quite well, above all at dusk.", "Blue"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_encoder(tmp_path / "encoder")


@torch.no_grad()
def similarity(folder: Path, one: str, other: str) -> float:
    """Cosine similarity of the mean hidden states, each text by itself."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    first, second = (
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0)
        for text in (one, other)
    )
    return (first @ second / (first.norm() * second.norm())).item()


def nearest(folder: Path, answer: str, references: References) -> float:
    correct, incorrect = (max(similarity(folder, answer, other) for other in side) for side in references)
    return correct - incorrect


@pytest.mark.parametrize("batch_size", [1, 2])
def test_nearest_correct_minus_nearest_incorrect(batch_size: int, folder: Path) -> None:
    judge = EmbeddingJudge(Work(), str(folder), batch_size=batch_size)
    expected = [nearest(folder, answer, given) for answer, given in zip(ANSWERS, REFERENCES, strict=True)]
    assert judge.scores(PROMPTS, ANSWERS, REFERENCES) == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 1e-3


def test_an_answer_that_is_a_reference(folder: Path) -> None:
    judge = EmbeddingJudge(Work(), str(folder), batch_size=4)
    (score,) = judge.scores(PROMPTS[:1], ["No."], REFERENCES[:1])
    assert score == pytest.approx(
        max(similarity(folder, "No.", other) for other in REFERENCES[0].correct) - 1, abs=1e-5
    )


def test_agreement_is_measured_leaving_one_out(folder: Path) -> None:
    judge = EmbeddingJudge(Work(), str(folder), batch_size=3)
    agreed = 0
    for given in REFERENCES:
        for sign, side in ((1, given.correct), (-1, given.incorrect)):
            for answer in side:
                others = References(*([other for other in part if other != answer] for part in given))
                agreed += sign * nearest(folder, answer, others) > 0
    expected = {"of": "answers", "agreement": pytest.approx(agreed / 9), "majority": pytest.approx(5 / 9), "n": 9}
    assert judge.agreement(PROMPTS, REFERENCES) == expected


def test_kept_scores_are_those_of_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    work = Work(tmp_path / "kept")
    first = EmbeddingJudge(work, str(folder), batch_size=2)
    scores = first.scores(PROMPTS, ANSWERS, REFERENCES)
    again = EmbeddingJudge(work, str(folder), batch_size=2)
    again._encoder.model = None  # it is not asked
    assert again.scores(PROMPTS, ANSWERS, REFERENCES) == scores
    other = EmbeddingJudge(work, str(save_encoder(tmp_path / "other", hidden_size=16)), batch_size=2)
    assert other.scores(PROMPTS, ANSWERS, REFERENCES) != scores


def test_longer_texts_than_the_encoder_reads(folder: Path, capsys: pytest.CaptureFixture) -> None:
    judge = EmbeddingJudge(Work(), str(folder), batch_size=2)
    long = "so it went on and on " * 30
    judge.scores(PROMPTS, ["Yes", long], REFERENCES)
    judge.scores(PROMPTS, ["No", f"{long} {long}"], REFERENCES)
    assert capsys.readouterr().err.count("reads 40 tokens: of longer texts it judges a part.") == 1


def test_language_model(tiny_models) -> None:
    with pytest.raises(UserError, match="is a GPT2LMHeadModel, which is not an encoder of sentences") as error:
        EmbeddingJudge(Work(), str(tiny_models("gpt2")), batch_size=2)
    assert "all-MiniLM-L6-v2" in error.value.fix


def test_classifier(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a LlamaForSequenceClassification, which is not an encoder"):
        EmbeddingJudge(Work(), str(save_chat_reward(tmp_path)), batch_size=2)


def test_encoder_that_pools_in_another_way(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    EmbeddingJudge(Work(), str(folder), batch_size=2)
    settings |= {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"not an encoder of sentences by their mean.\n.*says pooling_mode_cls_token"):
        EmbeddingJudge(Work(), str(folder), batch_size=2)


def test_encoder_with_weights_missing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"It has no weights for encoder\.layer\.2\."):
        EmbeddingJudge(Work(), str(folder), batch_size=2)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model at"):
        EmbeddingJudge(Work(), str(tmp_path / "none"), batch_size=2)


@pytest.mark.slow
@needs_deepspeed
def test_zero3_does_not_divide_a_judge(folder: Path, tmp_path: Path) -> None:
    script = REPOSITORY / "tests" / "evaluation" / "judges" / "under_zero3.py"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    done = run_python(*launch, script, folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("score "))
    assert float(line.split()[1]) == pytest.approx(nearest(folder, "Yes", REFERENCES[0]), abs=1e-5)
