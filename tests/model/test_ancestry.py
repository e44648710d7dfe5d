from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lora_dpo.errors import UserError
from lora_dpo.model.ancestry import ancestry, find_record
from lora_dpo.model.record import write_record

VERSIONS = {"code": {"version": "0.1.0", "commit": None}, "packages": {"torch": "2.13.0", "datasets": "5.2.0"}}
BASE = {"name": "org/base", "revision": "main", "weights_sha256": "ba5e" * 16, "provenance": None}


def adapter(**changes: Any) -> dict[str, Any]:
    section = {"method": "qlora", "r": 8, "dora": False, "rslora": True}
    return {
        "stage": "dpo",
        **VERSIONS,
        "model": BASE,
        "parents": [],
        "quantization": {"bits": 4, "bnb_4bit_quant_type": "nf4", "dtype": "bfloat16"},
        "data": {"train": "da7a" * 16},
        "weights_sha256": "ada9" * 16,
        "recipe": {"adapter": section},
        **changes,
    }


def shown(name: str, record: dict[str, Any]) -> list[str]:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(ancestry(name, record))
    return captured.get().splitlines()


def test_what_an_adapter_was_made_of() -> None:
    parent = {"name": "runs/sft", "weights_sha256": "5f7" * 20, "provenance": adapter(stage="sft", quantization=None)}
    assert shown("runs/dpo/adapter", adapter(parents=[parent])) == [
        "runs/dpo/adapter  dpo, qlora r 8, rsLoRA  ada9ada9ada9",
        "├── base org/base  revision main  ba5eba5eba5e",
        "├── goes on from runs/sft  sft, qlora r 8, rsLoRA  5f75f75f75f7",
        "│   ├── base org/base  revision main  ba5eba5eba5e",
        "│   ├── data train da7ada7ada7a",
        "│   └── made by lora-dpo 0.1.0, torch 2.13.0",
        "├── quantised 4 bits, nf4",
        "├── data train da7ada7ada7a",
        "└── made by lora-dpo 0.1.0, torch 2.13.0",
    ]


def test_a_merged_model_and_what_was_trained_on_it() -> None:
    part = {"name": "runs/sft", "weights_sha256": "ada9" * 16, "provenance": None}
    merged = {
        "stage": "merge",
        **VERSIONS,
        "model": BASE,
        "adapters": [part],
        "onto": "full",
        "dtype": "bfloat16",
        "weights_sha256": "3e46" * 16,
    }
    lines = shown("out", adapter(model={**BASE, "name": "merged", "revision": None, "provenance": merged}))
    assert "├── base merged  merge of 1 adapter onto the full base, bfloat16  ba5eba5eba5e" in lines
    assert "│   ├── merged in runs/sft  ada9ada9ada9" in lines


def test_of_a_run_the_adapter_or_the_model_is_shown(tmp_path: Path) -> None:
    write_record(tmp_path, {"model": BASE})
    assert find_record(str(tmp_path)) == (str(tmp_path), {"model": BASE})
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, adapter(stage=name))
        place, record = find_record(str(tmp_path))
        assert (place, record["stage"]) == (str(tmp_path / name), name)


def test_what_does_not_say_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say where it comes from"):
        find_record(str(tmp_path))
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(UserError, match="There is nothing at") as caught:
        find_record(str(tmp_path / "quikstart"))
    assert f"Did you mean '{tmp_path / 'quickstart'}'?" in caught.value.fix
