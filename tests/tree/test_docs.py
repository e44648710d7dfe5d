"""The example in docs/trees.md runs as it is printed, on a small model and small data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "trees.md"
MODEL = '"Qwen/Qwen2.5-0.5B-Instruct"'
OUTPUT = 'output_dir="out"'
DATA = '"trl-lib/ultrafeedback_binarized", split="train"'


@pytest.mark.slow
def test_the_ten_line_example(tiny_models, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    assert example.count(MODEL) == example.count(DATA) == example.count(OUTPUT) == 1
    turn = lambda role, text: {"role": role, "content": text}  # noqa: E731 - three times the same
    rows = [
        {
            "chosen": [turn("user", f"What is {n} and {n}?"), turn("assistant", f"It is {2 * n}.")],
            "rejected": [turn("user", f"What is {n} and {n}?"), turn("assistant", f"It is {n}, of course.")],
        }
        for n in range(16)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = tmp_path / "train.py"
    script.write_text(
        example.replace(MODEL, repr(str(tiny_models("qwen2"))))
        .replace(DATA, f'"json", data_files={str(data)!r}, split="train"')
        .replace(OUTPUT, f"{OUTPUT}, use_cpu=True")
        + "print('sharing', trainer.state.log_history[0].get('tree/sharing'))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Trees are off" not in done.stderr
    assert float(re.findall(r"^sharing (.+)$", done.stdout, flags=re.M)[0]) > 1.2
    assert list((tmp_path / "out").glob("checkpoint-*/adapter_model.safetensors"))
