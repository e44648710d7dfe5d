"""What a merge found, for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lora_dpo.console import err, out

_GGUF_TYPES = {"float16": "f16", "bfloat16": "bf16"}
_ROWS = {
    "top1_agreement": ("same most likely token", "{:.2%}", "at least {:.0%}"),
    "kl_mean": ("KL from base + adapters, nats a token", "{:.2e}", "at most {:.0e}"),
    "logp_max_abs": ("largest change of a token's log-prob, nats", "{:.2e}", "at most {:g}"),
}


def print_merge(report: Mapping[str, Any], folder: Path) -> None:
    """Prints what merge_report.json says.

    Args:
        report: Its content.
        folder: The merged model.
    """
    probes, answers = report["probes"], report["answers"]
    table = Table(caption=f"{probes['tokens']} tokens of {probes['questions']} questions, {report['dtype']}")
    for heading in ("", "merged", "allowed", "without adapters"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in agreement_rows(report):
        table.add_row(*row)
    out.print(table)
    for onto, found in report["distances"].items():
        taken = ", which was taken" if onto == report["onto"] else ""
        out.print(
            f"Merged onto the {onto} base it is {found['kl_mean']:.2e} nats a token from what was trained{taken}."
        )
    same = sum(answer["expected"] == answer["merged"] for answer in answers)
    out.print(f"{same} of {len(answers)} greedy answers begin with the same words.")
    err.print(f"{report['seconds']:g} s, {report['peak_bytes'] / 1e9:.2f} GB of memory at most.")
    out.print(f"model  {folder}", soft_wrap=True)


def agreement_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yields what was compared: its name, the merged model's number, what is allowed, and the base's without adapters.

    Args:
        report: The content of merge_report.json.
    """
    for key, (label, form, bound) in _ROWS.items():
        numbers = form.format(report[key]), bound.format(report["bounds"][key]), form.format(report["untrained"][key])
        yield label, *numbers


def gguf_command(report: Mapping[str, Any], folder: Path) -> str:
    """Returns the command by which llama.cpp's own converter, which is in no package, makes a GGUF file.

    Args:
        report: The content of merge_report.json.
        folder: The merged model.
    """
    kind = _GGUF_TYPES.get(report["dtype"], "f32")
    file = folder.with_name(f"{folder.name}-{kind}.gguf")
    return shlex.join(
        ["python", "llama.cpp/convert_hf_to_gguf.py", str(folder), "--outfile", str(file), "--outtype", kind]
    )
