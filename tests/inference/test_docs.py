"""The programs in docs/inference.md run as they are printed, on a small model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_dpo.inference.chat_model import ChatModel
from lora_dpo.inference.found import find_model
from lora_dpo.inference.sampling import Sampling

DOCS = Path(__file__).parents[2] / "docs" / "inference.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=["transformers", "peft", "own"])
def test_programs_answer_as_the_run_does(work: Path, program: str, capsys) -> None:
    code = program.replace("runs/quickstart", "runs/small").replace('"merged")', '"merged", do_sample=False)')
    exec(code, {"__name__": "docs"})
    printed = capsys.readouterr().out.strip()
    model = ChatModel(find_model("runs/small"))
    prompt = model.encoder.prompt_ids([{"role": "user", "content": "Do bats see?"}])
    (answer,) = model.answers([prompt], Sampling(8))
    assert printed.startswith(answer["text"].strip()[:8])
