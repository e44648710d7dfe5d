"""Measures what TRL's metrics cost in the scoring of a tree's edges: what is done for them alone, against the whole.

    python benchmarks/head.py
    python benchmarks/head.py --parents 256 --vocabulary 256000 --hidden 2304

The entropy follows from sums that the gradient needs anyway, and the most likely token from the maximum; the mean logit
is one more sum over each tile of logits.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

_ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/head.py --parents 256 --vocabulary 256000 --hidden 2304")
def main(
    parents: Annotated[int, typer.Option(min=1, help="Tokens that predict something.")] = 512,
    vocabulary: Annotated[int, typer.Option(min=2, help="Tokens of the vocabulary.")] = 50_000,
    hidden: Annotated[int, typer.Option(min=1, help="Size of a hidden state.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations; medians are shown.")] = 15,
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")] = Path(__file__).parent
    / "results"
    / "head.json",
) -> None:
    """Measure the share of the metrics in scoring, forward and backward, on the CPU in fp32."""
    import torch

    from benchmarks.results import environment, write_entries
    from lora_dpo.console import out
    from lora_dpo.tree import score
    from lora_dpo.tree.score import Head, score_edges

    torch.manual_seed(0)
    states, weight = torch.randn(parents, hidden, requires_grad=True), torch.randn(vocabulary, hidden) * 0.02
    edges, targets = torch.arange(parents), torch.randint(vocabulary, (parents,))
    rows = min(score._ROWS["cpu"], parents)
    words = min(score._TILE_ELEMENTS["cpu"] // rows, vocabulary)
    tile = torch.randn(rows, words)
    tiles = -(-parents // rows) * -(-vocabulary // words)

    def whole() -> None:
        states.grad = None
        score_edges(states, edges, targets, Head(weight)).log_probs.sum().backward()

    def metrics() -> None:
        for _ in range(tiles):
            tile.sum(1)

    seconds: dict[str, list[float]] = {"whole": [], "metrics": []}
    for _ in range(rounds + 1):
        seconds["whole"].append(_timed(whole))
        seconds["metrics"].append(_timed(metrics))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    entry = {
        "parents": parents,
        "vocabulary": vocabulary,
        "hidden": hidden,
        "seconds": medians,
        "ratios": {"metrics_over_whole": medians["metrics"] / medians["whole"]},
        "environment": environment(),
    }
    milliseconds, share = {name: 1e3 * value for name, value in medians.items()}, entry["ratios"]["metrics_over_whole"]
    out.print(
        f"{parents} parents, {vocabulary:,} tokens, hidden size {hidden}: {milliseconds['whole']:.1f} ms forward and "
        f"backward, of which metrics take {milliseconds['metrics']:.2f} ms ({share:.1%})."
    )
    write_entries(json_file, {f"{parents}x{vocabulary}x{hidden}": entry}, fresh=False)


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
