"""From what the arms reported to numbers, a table and a JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arms import ARMS
from benchmarks.session import Measurement
from benchmarks.worker import Probe
from benchmarks.workloads import count_tokens

_FOLDER = Path(__file__).parent
_DISTURBED_CORES = 0.3
_SLOWER_ARMS = ("A", "B", "Bc", "C")


def summarise(measured: Measurement, model: str) -> dict[str, Any]:
    """Returns a workload's entry of the JSON file.

    Speed ratios say how many times faster D is (seconds of the other / seconds of D), `memory_D_over_B` which part of
    B's memory D takes; each is the median of the rounds' ratios. What was not measured is null.

    Args:
        measured: What the arms reported.
        model: The model's name.
    """
    tokens = [count_tokens(step) for step in measured.measured_steps]
    return {
        "model": model,
        "pairs_per_step": measured.workload.pairs_per_step,
        "arms": {
            key: _arm(measured, key, [step.trl for step in tokens])
            for key in ARMS
            if key in measured.taken or key in measured.failures
        },
        "ratios": {
            **{f"D_over_{key}": _ratio(measured, key, "D", "seconds") for key in _SLOWER_ARMS},
            "memory_D_over_B": _ratio(measured, "D", "B", "peak_bytes"),
        },
        "exact": _exact(measured),
        "limit": _limit(measured),
        "tokens": {name: round(statistics.mean(getattr(step, name) for step in tokens)) for name in tokens[0]._fields},
        "environment": environment(),
    }


def _arm(measured: Measurement, key: str, tokens: list[int]) -> dict[str, Any]:
    steps = measured.taken.get(key, [])
    peaks = [step.peak_bytes for step in steps if step.peak_bytes is not None]
    seconds = _median(step.seconds for step in steps)
    pairs = measured.workload.pairs_per_step
    return {
        "seconds_per_step": seconds,
        "peak_bytes": max(peaks, default=None),
        "pairs_per_second": None if seconds is None else pairs / seconds,
        "tokens_per_second": _median(n / step.seconds for n, step in zip(tokens, steps, strict=False)),
        "all_seconds": [step.seconds for step in steps],
        "busy_elsewhere": [round(step.busy_elsewhere, 2) for step in steps],
        "error": measured.failures.get(key),
    }


def _ratio(measured: Measurement, above: str, below: str, name: str) -> float | None:
    pairs = zip(measured.taken.get(above, []), measured.taken.get(below, []), strict=False)
    values = [(getattr(one, name), getattr(other, name)) for one, other in pairs]
    return _median(one / other for one, other in values if one is not None and other is not None)


def _exact(measured: Measurement) -> dict[str, float | None]:
    """Compares D with B: the first step's log-probs and gradients, and the losses of all steps."""
    if not {"B", "D"} <= measured.probes.keys():
        return dict.fromkeys(("logp_max_abs", "logp_mean_abs", "grad_max_rel", "loss_max_abs"))
    losses = zip(measured.losses["B"], measured.losses["D"], strict=False)
    return {
        **log_prob_distance(measured.probes["D"], measured.probes["B"]),
        "grad_max_rel": gradient_distance(measured.probes["D"], measured.probes["B"]),
        "loss_max_abs": max(abs(one - other) for one, other in losses),
    }


def log_prob_distance(one: Probe, other: Probe) -> dict[str, float]:
    """Returns the largest and the mean difference of the sequences' log-probs, in nats."""
    off = np.abs(one.log_probs.astype(np.float64) - other.log_probs)
    return {"logp_max_abs": float(off.max()), "logp_mean_abs": float(off.mean())}


def gradient_distance(one: Probe, other: Probe) -> float:
    """Returns the largest difference of the gradients, relative to the largest entry of each matrix in `other`.

    Raises:
        ValueError: The matrices are not the same ones.
    """
    if one.gradients.keys() != other.gradients.keys() or not one.gradients:
        raise ValueError(f"Different gradients: {len(one.gradients)} and {len(other.gradients)} matrices.")
    scales = {name: np.abs(gradient).max() or 1.0 for name, gradient in other.gradients.items()}
    return max(float(np.abs(one.gradients[name] - other.gradients[name]).max() / scales[name]) for name in scales)


def _limit(measured: Measurement) -> dict[str, float | None]:
    """Compares D's matrix products a second with what one large product gets on the same machine in the same rounds."""
    gemm = _median(measured.gemm)
    achieved = _median(n / step.seconds for n, step in zip(measured.flops, measured.taken.get("D", []), strict=False))
    return {
        "step_flops": _median(measured.flops),
        "gemm_flops": gemm,
        "achieved_flops": achieved,
        "fraction": None if achieved is None or gemm is None else achieved / gemm,
    }


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def environment() -> dict[str, Any]:
    """Returns what the numbers depend on, and when and from which commit they came."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ":/", ":(exclude)results")),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _FOLDER, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def print_result(name: str, entry: dict[str, Any], out: Console) -> None:
    """Prints a workload's table, and what it says in sentences.

    Args:
        name: The workload's name.
        entry: What `summarise` returned.
        out: Where to.
    """
    table = Table(title=f"{name}: {entry['model']}, {entry['pairs_per_step']} pairs a step", title_justify="left")
    table.add_column("arm")
    for column in ("s/step", "pairs/s", "tokens/s", "peak GB", "D is faster by"):
        table.add_column(column, justify="right")
    ratios = {key: entry["ratios"].get(f"D_over_{key}") for key in entry["arms"]}
    for key, arm in entry["arms"].items():
        numbers = [_number(arm["seconds_per_step"], ".3g"), _number(arm["pairs_per_second"], ".3g")]
        numbers += [_number(arm["tokens_per_second"], ",.0f"), _number(arm["peak_bytes"], ".2f", 1e-9)]
        numbers.append("" if ratios[key] is None else f"{ratios[key]:.2f} x")
        table.add_row(f"{key}  {ARMS[key].title}", *([arm["error"]] if arm["error"] else numbers))
    out.print(table)
    tokens, exact, limit = entry["tokens"], entry["exact"], entry["limit"]
    out.print(
        f"Tokens a step: {tokens['padded']:,} padded, {tokens['trl']:,} of TRL (2P + C + R, the unit of tokens/s), "
        f"{tokens['distinct']:,} distinct."
    )
    if exact["logp_max_abs"] is not None:
        out.print(
            f"D against B: log-probs within {exact['logp_max_abs']:.1e}, gradients within "
            f"{exact['grad_max_rel']:.1e} of each matrix's largest, losses within {exact['loss_max_abs']:.1e}."
        )
    if limit["fraction"] is not None:
        out.print(
            f"D makes {limit['achieved_flops'] / 1e9:,.1f} GFLOP/s, {limit['fraction']:.0%} of the "
            f"{limit['gemm_flops'] / 1e9:,.1f} of a plain matrix product."
        )
    busy = [cores for arm in entry["arms"].values() for cores in arm["busy_elsewhere"]]
    if (disturbed := sum(cores > _DISTURBED_CORES for cores in busy)) > 0:
        out.print(
            f"{disturbed} of the {len(busy)} steps were disturbed: other processes kept up to {max(busy):.1f} of "
            f"{entry['environment']['cores']} cores busy."
        )
    out.print()


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def write_entries(file: Path, entries: dict[str, Any], *, fresh: bool) -> None:
    """Writes workloads' entries; those already in the file stay unless they are replaced.

    Args:
        file: The JSON file; its folder is made.
        entries: By workload.
        fresh: Drop what is in the file.
    """
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not fresh else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(old | entries, indent=2) + "\n", encoding="utf-8")
