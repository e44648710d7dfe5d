"""Trainings on two nodes: the same as on one, whatever the strategy, side by side, and without a way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine import needs_deepspeed
from tests.slurm.cluster import Cluster
from tests.slurm.runs import ClusterRun

STRATEGIES = ["ddp", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]
# On two nodes that they share, so that their ports would collide.
SHAPES = {"one node": ("node4", 4), **dict.fromkeys(("ddp", "zero2", "zero3"), ("node1,node2", 2))}


@pytest.fixture(scope="module")
def trained(cluster: Cluster, tiny_models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ClusterRun]:
    """Returns a function to a finished training; all of them are submitted at once, two or three run side by side."""
    folder, runs = tmp_path_factory.mktemp("trained"), {}
    for name, (nodes, each) in SHAPES.items():
        runs[name] = ClusterRun(cluster, folder / f"with {name}", tiny_models("llama"))
        runs[name].nodes = nodes
        strategy = "ddp" if name == "one node" else name
        runs[name].submit(
            each=each,
            words=(f"train.strategy={strategy}",),
            LORA_DPO_OFFLINE="1",
            TORCH_EXTENSIONS_DIR=str(folder / "compiled"),  # once for all
        )

    def of(name: str) -> ClusterRun:
        job = runs[name].ended()
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), runs[name].output[-6000:]
        return runs[name]

    return of


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_nodes_train_as_one_does(trained: Callable[[str], ClusterRun], strategy: str):
    run, one = trained(strategy), trained("one node")
    assert len(run.losses()) == len(one.losses()) == 15
    assert run.losses() == pytest.approx(one.losses(), abs=2e-6)
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["world_size"] == 4
    assert provenance["strategy"] == strategy
    assert "4: 2 x 2 a node" in run.output


def test_what_is_written_down(trained: Callable[[str], ClusterRun]):
    run = trained("ddp")
    started, ended = run.events()
    assert (started["event"], started["nodes"], started["from_step"]) == ("started", ["node1", "node2"], 0)
    assert (ended["event"], ended["cause"], ended["step"], ended["exit_code"]) == ("ended", "done", 15, 0)
    logs = run.path / "slurm" / "logs"
    assert sorted(file.name for file in logs.iterdir()) == [f"dpo-{run.job}.0.node{n}.out" for n in (1, 2)]
    assert "step 15/15" in (logs / f"dpo-{run.job}.0.node1.out").read_text()


def test_ports_and_interfaces(trained: Callable[[str], ClusterRun]):
    ports = {name: re.search(r"--master_port (\d+)", trained(name).output)[1] for name in ("ddp", "zero2")}
    assert len(set(ports.values())) == 2
    assert all(20000 <= int(port) < 30000 for port in ports.values())


def test_started_again_it_shows_the_report(trained: Callable[[str], ClusterRun]):
    run = trained("ddp")
    before = run.adapter
    run.submit(words=("train.strategy=ddp",), each=2)
    assert run.ended()["JobState"] == "COMPLETED"
    assert "The run is complete: runs/small/report.md" in run.output
    assert run.adapter == before


def test_a_mistake_is_said_once_and_not_tried_again(cluster: Cluster, tiny_models, tmp_path: Path):
    run = ClusterRun(cluster, tmp_path / "a b", tiny_models("llama"))
    run.submit(words=("train.epoch=3",))
    job = run.ended()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert run.output.count("unknown key 'train.epoch'. Did you mean 'train.epochs'?") == 1
    assert not run.path.exists()


SEES = """#!/bin/bash
[[ "$*" != *cluster.node* ]] || echo "$CUDA_VISIBLE_DEVICES" >"${0%/*}/seen"
exec "$@"
"""


def test_gpus_that_are_asked_for_as_a_gres_reach_the_processes(cluster: Cluster, tiny_models, tmp_path: Path):
    wrapper = tmp_path / "sees"
    wrapper.write_text(SEES)
    wrapper.chmod(0o755)
    run = ClusterRun(cluster, tmp_path, tiny_models("llama"))
    run.nodes = "node3"
    words = ("train.strategy=single", "train.max_steps=2", "evaluation.samples=0")
    run.submit("--gres=gpu:2", words=words, LORA_DPO_RUN_WITH=str(wrapper))
    assert run.ended()["JobState"] == "COMPLETED"
    assert (tmp_path / "seen").read_text() == "0,1\n"


def test_an_array_is_one_run_a_task(cluster: Cluster, tiny_models, tmp_path: Path):
    run = ClusterRun(cluster, tmp_path, tiny_models("llama"))
    run.nodes = "node3"
    words = ("train.strategy=single", "train.max_steps=2", "evaluation.samples=0")
    refused = run.submit("--array=1-2", words=words)
    run.submit("--array=1-2", words=(*words, "run.seed=%a", "run.name=seed-%a"))
    run.cluster.until(
        lambda: all((tmp_path / "runs" / f"seed-{n}" / "report.json").is_file() for n in (1, 2)),
        "both runs of the array",
    )
    assert cluster.wait(refused)["ExitCode"] == "2:0"
    assert "put %a into a word, as in run.name=mine-%a" in run.output
    for task in (1, 2):
        (line,) = (tmp_path / "runs" / f"seed-{task}" / "slurm" / "jobs.jsonl").read_text().splitlines()[:1]
        assert json.loads(line)["array_task"] == task
