"""Measures one optimizer step inside TRL's trainer, on a GPU, with Gemma-2 9B's shape and random weights.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --layers 8 --workload all --steps 3
    python benchmarks/gpu.py --device cpu --tiny

README.md beside this file says what the arms are and how to read the JSON.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from transformers import Gemma2Config

    from benchmarks.session import Setting
    from benchmarks.workloads import Step

_ROOT = Path(__file__).resolve().parent.parent
_SHALLOW_LAYERS = 2
_TINY_FACTOR = 8

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(
    epilog="Examples: python benchmarks/gpu.py   |   "
    "python benchmarks/gpu.py --layers 8 --workload all --steps 3   |   "
    "python benchmarks/gpu.py --device cpu --tiny"
)
def main(
    workload: Annotated[
        list[str] | None, typer.Option(help="best, all, ultrafeedback or long; may be repeated. Default: all four.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers, for a try.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each arm.")] = 5,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them that do not count.")] = 2,
    arms: Annotated[
        str, typer.Option(help="Which arms, with commas between them; TRL's head is compact here by itself, so no Bc.")
    ] = "A,B,C,D",
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A model and pairs of seconds, to try the script.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go; other workloads in it stay.")] = Path(
        __file__
    ).parent
    / "results"
    / "gpu.json",
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what is in the JSON file.")] = False,
) -> None:
    """Measure one optimizer step with the shape of Gemma-2 9B on a GPU, in bf16: TRL and prefix trees in turn.

    Weights and tokens are random, so nothing is downloaded; the lengths are those of the CPU benchmark's texts. The
    arms share the frozen weights and take steps one after the other, in an order that changes.
    """
    import torch

    from lora_dpo.errors import UserError

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("This needs a CUDA GPU, and PyTorch finds none (--device cpu --tiny tries the script).")
    from benchmarks.arms import ARMS
    from benchmarks.cli import check_names, report, working
    from benchmarks.models import SharedModel, blank_tokenizer, gemma2_9b, random_model, tiny_gemma2
    from benchmarks.results import summarise
    from benchmarks.session import Setting, measure
    from benchmarks.workloads import LIKE_TEXTS, Workload, synthetic

    keys, names = arms.split(","), workload or list(LIKE_TEXTS)
    check_names(keys, [key for key in ARMS if not ARMS[key].compact_head])
    check_names(names, LIKE_TEXTS)
    make = tiny_gemma2 if tiny else gemma2_9b
    config = make() if layers is None else make(layers)
    meter = "cuda" if device == "cuda" else "clock"
    torch.manual_seed(0)
    with working() as say:
        say("random weights")
        base = random_model(config, torch.bfloat16, device)
    for number, name in enumerate(names):
        lengths = LIKE_TEXTS[name].shortened(_TINY_FACTOR) if tiny else LIKE_TEXTS[name]
        chosen = Workload(name, synthetic(lengths, steps + warm_up, config.vocab_size))
        with working() as say:
            setting = Setting(SharedModel(base, blank_tokenizer()), "thread", meter, say)
            measured = measure(chosen, keys, setting, warm_up)
            say(f"{name}: against fp32")
            entry = summarise(measured, f"gemma2-{config.num_hidden_layers}x{config.hidden_size}")
            entry["exact"]["against_fp32"] = _against_fp32(chosen.steps[0], make(_SHALLOW_LAYERS), device, setting)
        report(name, entry, json_file, fresh=fresh and not number)


def _against_fp32(step: Step, config: Gemma2Config, device: str, setting: Setting) -> dict[str, dict[str, float]]:
    """Returns how far B and D in bf16 are from TRL in fp32, with the same weights in a few layers.

    Two computations in bf16 differ by more than either's error tells; this says whether D's is larger than B's.
    """
    import copy
    from dataclasses import replace

    import torch

    from benchmarks.models import SharedModel, random_model
    from benchmarks.results import gradient_distance, log_prob_distance
    from benchmarks.session import ArmFailedError, probe

    rounded = random_model(config, torch.bfloat16, device)
    precise = copy.deepcopy(rounded).float()
    tokenizer = setting.load.tokenizer
    try:
        truth = probe(step, "B", replace(setting, load=SharedModel(precise, tokenizer)))
        found = {key: probe(step, key, replace(setting, load=SharedModel(rounded, tokenizer))) for key in ("B", "D")}
    except ArmFailedError:
        return {}
    return {
        key: {**log_prob_distance(arm, truth), "grad_max_rel": gradient_distance(arm, truth)}
        for key, arm in found.items()
    }


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    # Arms that alternate in one process fragment its memory; and the trainers' bars would cover one another.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
