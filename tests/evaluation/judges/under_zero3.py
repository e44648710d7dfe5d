"""Prints a judge's score in a process for which ZeRO-3 is switched on; DeepSpeed stays in the process."""

from __future__ import annotations

import sys

import deepspeed
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from lora_dpo.evaluation.judges.embedding import EmbeddingJudge
from lora_dpo.evaluation.work import Work
from tests.evaluation.judges.models import PROMPTS, REFERENCES

if __name__ == "__main__":
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    held = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    judge = EmbeddingJudge(Work(), sys.argv[1], batch_size=2)
    assert is_deepspeed_zero3_enabled()
    print("score", judge.scores(PROMPTS[:1], ["Yes"], REFERENCES[:1])[0])
