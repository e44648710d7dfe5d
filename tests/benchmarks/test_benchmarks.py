"""The benchmarks run, compare what they say they compare, and write every number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.flops import counting_flops
from benchmarks.results import gradient_distance, log_prob_distance, write_entries
from benchmarks.worker import Probe
from benchmarks.workloads import LIKE_TEXTS, Lengths, TokenPair, count_tokens, synthetic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ARM_KEYS = {
    "seconds_per_step",
    "peak_bytes",
    "pairs_per_second",
    "tokens_per_second",
    "all_seconds",
    "busy_elsewhere",
    "error",
}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_tokens_are_counted_as_in_a_hand_drawn_tree():
    pairs = [TokenPair([1, 2], [3, 4], [3, 5, 6]), TokenPair([1, 2], [3, 4], [7])]
    # Rows of 4, 5, 4 and 3 tokens; the tree is 1 2 3, below it 4 and 5 6, and 7 beside 3.
    assert count_tokens(pairs) == (4 * 5, 4 + 5 + 4 + 3, 7)


def test_random_pairs_have_the_lengths_asked_for_and_never_repeat():
    steps = synthetic(Lengths(2, 2, 3, (5, 7), (3, 4)), 3, vocabulary=1000)
    assert [len(step) for step in steps] == [2 * 2 * 3] * 3
    assert len({tuple(pair.prompt_ids) for step in steps for pair in step}) == 6
    assert {len(pair.prompt_ids) for step in steps for pair in step} <= {5, 6, 7}
    assert len(synthetic(LIKE_TEXTS["all"], 1, 1000)[0]) == 64


def test_flops_include_the_cpu_attention_and_products_in_place():
    left, right, total = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
    query = torch.ones(1, 2, 6, 8, requires_grad=True)
    with counting_flops() as counter:
        total.addmm_(left, right)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5
    with counting_flops() as counter:
        output = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    # two products of 2 heads x 6 x 6 x 8, of which a causal kernel computes 21 of 36 entries
    assert counter.get_total_flops() == 2 * 2 * (2 * 6 * 6 * 8) * 21 // 36
    with counting_flops() as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * (2 * 6 * 6 * 8) * 21 // 36


def test_distances_are_those_of_a_hand_calculation():
    one = Probe(np.array([1.0, 2.0]), {"a": np.array([1.0, 4.0]), "b": np.array([0.0])})
    other = Probe(np.array([1.5, 1.9]), {"a": np.array([2.0, 5.0]), "b": np.array([0.0])})
    assert log_prob_distance(one, other) == pytest.approx({"logp_max_abs": 0.5, "logp_mean_abs": 0.3})
    assert gradient_distance(one, other) == pytest.approx(1 / 5)
    with pytest.raises(ValueError, match="2 and 1 matrices"):
        gradient_distance(one, Probe(other.log_probs, {"a": other.gradients["a"]}))


def test_workloads_in_the_file_stay(tmp_path):
    file = tmp_path / "new" / "step.json"
    for entries, fresh in (({"best": 1, "long": 1}, False), ({"best": 2}, False)):
        write_entries(file, entries, fresh=fresh)
    assert json.loads(file.read_text()) == {"best": 2, "long": 1}
    write_entries(file, {"all": 3}, fresh=True)
    assert json.loads(file.read_text()) == {"all": 3}


@pytest.mark.slow
def test_all_arms_of_a_tiny_model_agree(tiny_models, tmp_path):
    file, result = tmp_path / "pairs.jsonl", tmp_path / "step.json"
    rows = [
        {"prompt": f"What is {n} and {n}?", "chosen": f"It is {2 * n}.", "rejected": f"It is {n}, of course."}
        for n in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_models("llama")
    options = ["--pairs", str(file), "--pairs-per-step", "3", "--steps", "1", "--json", str(result)]
    done = run("step.py", "--model", str(model), *options)
    assert done.returncode == 0, done.stderr
    entry = json.loads(result.read_text())[f"{model.name}/pairs"]
    assert list(entry["arms"]) == ["A", "B", "Bc", "C", "D"]
    for arm in entry["arms"].values():
        assert arm.keys() == ARM_KEYS
        assert arm["error"] is None
        assert len(arm["all_seconds"]) == 1
        assert arm["pairs_per_second"] == pytest.approx(3 / arm["seconds_per_step"])
        assert arm["tokens_per_second"] == pytest.approx(entry["tokens"]["trl"] / arm["seconds_per_step"])
        assert arm["peak_bytes"] > sum(part.stat().st_size for part in model.glob("*.safetensors"))
    seconds = {key: arm["seconds_per_step"] for key, arm in entry["arms"].items()}
    peaks = {key: arm["peak_bytes"] for key, arm in entry["arms"].items()}
    ratios = {f"D_over_{key}": seconds[key] / seconds["D"] for key in ("A", "B", "Bc", "C")}
    assert entry["ratios"] == pytest.approx(ratios | {"memory_D_over_B": peaks["D"] / peaks["B"]})
    assert entry["exact"]["logp_max_abs"] <= 1e-4
    assert entry["exact"]["grad_max_rel"] <= 1e-4
    assert entry["exact"]["loss_max_abs"] <= 1e-5
    limit = entry["limit"]
    assert limit["achieved_flops"] == pytest.approx(limit["step_flops"] / seconds["D"])
    assert limit["fraction"] == pytest.approx(limit["achieved_flops"] / limit["gemm_flops"])
    assert entry["tokens"]["distinct"] < entry["tokens"]["trl"] <= entry["tokens"]["padded"]
    assert {"cpu", "cores", "threads", "torch", "transformers", "trl", "peft", "date", "commit"} <= entry[
        "environment"
    ].keys()


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_tiny_model(tmp_path):
    result = tmp_path / "gpu.json"
    options = ["--workload", "all", "--steps", "1", "--warm-up", "1", "--json", str(result)]
    done = run("gpu.py", "--device", "cpu", "--tiny", *options)
    assert done.returncode == 0, done.stderr
    entry = json.loads(result.read_text())["all"]
    assert list(entry["arms"]) == ["A", "B", "C", "D"]
    assert all(arm["seconds_per_step"] > 0 and arm["error"] is None for arm in entry["arms"].values())
    assert entry["tokens"]["padded"] > entry["tokens"]["distinct"]
    errors = entry["exact"]["against_fp32"]
    # In bf16 both are off; ours must not be further from fp32 than TRL's by more than chance.
    assert 0 < errors["D"]["logp_mean_abs"] < 3 * errors["B"]["logp_mean_abs"]


@pytest.mark.slow
def test_the_metrics_share_of_the_head_is_measured(tmp_path):
    result = tmp_path / "head.json"
    options = ["--parents", "20", "--vocabulary", "3000", "--hidden", "16", "--rounds", "2", "--json", str(result)]
    done = run("head.py", *options)
    assert done.returncode == 0, done.stderr
    entry = json.loads(result.read_text())["20x3000x16"]
    assert entry["ratios"]["metrics_over_whole"] == pytest.approx(
        entry["seconds"]["metrics"] / entry["seconds"]["whole"]
    )
    assert f"{entry['ratios']['metrics_over_whole']:.1%}" in done.stdout


@pytest.mark.slow
def test_without_a_gpu_one_sentence_says_so(tmp_path):
    done = run("gpu.py", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 2
    assert "Error: This needs a CUDA GPU" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_loop_of_collecting_training_and_comparing(tiny_models, tmp_path):
    result = tmp_path / "loop.json"
    counts = ("--pairs", "12", "--unseen", "3", "--people", "2")
    place = ("--folder", str(tmp_path / "loop"), "--output", str(result))
    done = run("collect_loop.py", *counts, "--model", str(tiny_models("llama")), *place)
    assert done.returncode == 0, done.stderr
    entry = json.loads(result.read_text())
    assert entry["collected"]["pairs"] == 12
    assert entry["tokens"]["n"] == entry["words"]["n"] == 3
    assert len(entry["examples"]) == 3
    votes = [json.loads(line) for line in (tmp_path / "loop" / "prefs.jsonl").read_text().splitlines()]
    assert {vote["annotator"] for vote in votes} == {"script 1", "script 2"}
    assert all(len(vote["chosen"]) <= len(vote["rejected"]) for vote in votes)
    assert "Tokens of an answer to 3 unseen questions" in done.stdout
