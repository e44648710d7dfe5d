"""Merging by `lora-dpo merge` and by PEFT's `merge_and_unload`, in turn, each in a process of its own.

    python benchmarks/merge.py --json
    python benchmarks/merge.py --layers 2 --rounds 1

The model has random weights in bfloat16, about 1 GB in files of 100 MB, with a LoRA adapter (r 16) on all its linear
layers. PEFT loads, merges and saves it as its documentation has it, with `low_cpu_mem_usage`. Ours writes file by file,
and then compares the result with base + adapter, for which PEFT's way has no counterpart: both times are given.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_RESULT = Path(__file__).parent / "results" / "merge.json"
_SHARD = "100MB"
_OURS = """
import json, sys
from pathlib import Path
from lora_dpo.merging.merge import Request, merge
print(json.dumps(merge(Request([sys.argv[2]], Path(sys.argv[3]), base=sys.argv[1]))))
"""
_PEFT = """
import json, sys, time
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
begin = time.monotonic()
dtype = getattr(torch, sys.argv[5])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype)
merged = PeftModel.from_pretrained(model, sys.argv[2], low_cpu_mem_usage=True).merge_and_unload()
merged.to(torch.bfloat16).save_pretrained(sys.argv[3], max_shard_size=sys.argv[4])
seconds = time.monotonic() - begin
from lora_dpo.memory import memory_bytes
print(json.dumps({"seconds": seconds, "peak_bytes": memory_bytes("VmHWM")}))
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/merge.py --layers 2 --rounds 1")
def main(
    layers: Annotated[int, typer.Option(min=1, help="Layers of 17 million parameters.")] = 27,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations; medians are shown.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = _RESULT,
) -> None:
    """Time both, measure their memory, and compare their tensors."""
    from benchmarks.results import environment
    from lora_dpo.console import err, out
    from lora_dpo.files import write_json

    known = environment()  # before a folder here looks like a change
    with tempfile.TemporaryDirectory(prefix="merge-", dir=Path.cwd()) as place:
        folder = Path(place)
        base, adapter = make(folder, layers)
        shards = [file.stat().st_size for file in base.glob("*.safetensors")]
        ours, peft = [], []
        for number in range(rounds):
            for arm, code, extra in ((ours, _OURS, []), (peft, _PEFT, [_SHARD, "bfloat16"])):
                target = folder / f"{'ours' if arm is ours else 'peft'}-{number}"
                arm.append(_run(code, base, adapter, target, *extra))
                err.print(f"round {number + 1} of {rounds}: {target.name} {arm[-1]['seconds']:.1f} s")
        _run(_PEFT, base, adapter, folder / "exact", _SHARD, "float32")
        entry = {
            "layers": layers,
            "model_bytes": sum(shards),
            "largest_shard_bytes": max(shards),
            "seconds": {
                "ours_merging": statistics.median(each["seconds_merging"] for each in ours),
                "ours_with_verification": statistics.median(each["seconds"] for each in ours),
                "peft": statistics.median(each["seconds"] for each in peft),
            },
            "peak_bytes": {
                "ours": max(each["peak_bytes"] for each in ours),
                "peft": max(each["peak_bytes"] for each in peft),
            },
            "bound_bytes": int(2.5 * max(shards) + 1e9),
            "ratios": {
                "ours_over_peft": statistics.median(
                    one["seconds_merging"] / other["seconds"] for one, other in zip(ours, peft, strict=True)
                ),
                "memory_ours_over_peft": max(each["peak_bytes"] for each in ours)
                / max(each["peak_bytes"] for each in peft),
            },
            "exact": {
                "against_peft_in_float32": differences(folder / "ours-0", folder / "exact"),
                "peft_in_bfloat16_against_it": differences(folder / "peft-0", folder / "exact"),
            },
            "agreement": {key: ours[0][key] for key in ("top1_agreement", "kl_mean", "logp_max_abs", "untrained")},
            "environment": known,
        }
    write_json(output, entry)
    out.print_json(json.dumps(entry)) if as_json else out.print(_sentence(entry))


def make(folder: Path, layers: int) -> tuple[Path, Path]:
    """Makes a random model and a random adapter.

    Args:
        folder: Where to.
        layers: The model's layers.

    Returns:
        The folders of both.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig

    from benchmarks.models import QUICKSTART, random_model, section
    from lora_dpo.model.base import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(section(QUICKSTART))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    )
    model = random_model(config, torch.bfloat16, "cpu")
    model.save_pretrained(folder / "base", max_shard_size=_SHARD)
    tokenizer.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def differences(one: Path, other: Path) -> dict[str, float]:
    """Compares two models tensor by tensor.

    Args:
        one: A folder with safetensors files.
        other: Another one.

    Returns:
        How many tensors and which part of the numbers differ, and the largest difference.
    """
    homes = [
        {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
        for folder in (one, other)
    ]
    if homes[0].keys() != homes[1].keys():
        raise ValueError(f"{one} and {other} have not the same tensors")
    from lora_dpo.model.shards import read

    tensors = numbers = total = 0
    largest = 0.0
    for name in homes[0]:
        left, right = (read(home[name], name).float() for home in homes)
        differing = int((left != right).sum())
        tensors, numbers, total = tensors + bool(differing), numbers + differing, total + left.numel()
        largest = max(largest, float((left - right).abs().max()))
    return {"tensors": len(homes[0]), "differing": tensors, "part_of_numbers": numbers / total, "max_abs": largest}


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _run(code: str, *arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _sentence(entry: dict[str, Any]) -> str:
    seconds, exact = entry["seconds"], entry["exact"]["against_peft_in_float32"]
    ours, theirs, bound = (value / 1e9 for value in (*entry["peak_bytes"].values(), entry["bound_bytes"]))
    return (
        f"{entry['model_bytes'] / 1e9:.2f} GB in files of {entry['largest_shard_bytes'] / 1e6:.0f} MB. Ours: "
        f"{seconds['ours_merging']:.1f} s, {seconds['ours_with_verification']:.1f} s with the verification, "
        f"{ours:.2f} GB of memory (at most {bound:.2f}). PEFT: {seconds['peft']:.1f} s, {theirs:.2f} GB. "
        f"{exact['differing']} of {exact['tensors']} tensors differ from what PEFT merges in float32."
    )


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
