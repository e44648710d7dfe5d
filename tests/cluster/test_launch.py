from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from lora_dpo.cluster.launch import plan_evaluation, plan_launch
from lora_dpo.cluster.nodes import Nodes
from lora_dpo.errors import UserError
from lora_dpo.recipe.schema import Recipe
from tests.process import ROOT


def recipe(strategy: str = "auto", method: str = "lora", batch: int = 16, micro: int | None = None) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "m"},
            "run": {"name": "r"},
            "adapter": {"method": method},
            "train": {"strategy": strategy, "global_batch_size": batch, "micro_batch_size": micro},
        }
    )


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that makes a number of GPUs visible; the working directory is the checkout."""
    monkeypatch.chdir(ROOT)

    def show(count: int) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))

    return show


ARGUMENTS = ["mine.yaml", "train.epochs=2"]
LAUNCH = "OMP_NUM_THREADS=1 accelerate launch --quiet --config_file accelerate_configs"
ANY_PORT = "--main_process_port 0"
TRAINING = "-m lora_dpo.dpo mine.yaml train.epochs=2"
GOLDEN = {
    ("auto", "lora", 0): ("single", 1, f"{LAUNCH}/single.yaml {TRAINING}"),
    ("auto", "lora", 1): ("single", 1, f"{LAUNCH}/single.yaml {TRAINING}"),
    ("auto", "lora", 4): ("ddp", 4, f"{LAUNCH}/ddp.yaml --num_processes 4 {ANY_PORT} {TRAINING}"),
    ("auto", "qlora", 1): ("single", 1, f"{LAUNCH}/single.yaml {TRAINING}"),
    ("auto", "qlora", 2): ("qlora", 2, f"{LAUNCH}/qlora.yaml --num_processes 2 {ANY_PORT} {TRAINING}"),
    ("single", "lora", 4): ("single", 1, f"{LAUNCH}/single.yaml {TRAINING}"),
    ("ddp", "lora", 1): ("ddp", 1, f"{LAUNCH}/ddp.yaml --num_processes 1 {ANY_PORT} {TRAINING}"),
    ("ddp", "lora", 2): ("ddp", 2, f"{LAUNCH}/ddp.yaml --num_processes 2 {ANY_PORT} {TRAINING}"),
    ("qlora", "qlora", 4): ("qlora", 4, f"{LAUNCH}/qlora.yaml --num_processes 4 {ANY_PORT} {TRAINING}"),
    ("auto", "full", 4): (
        "zero2",
        4,
        f"{LAUNCH}/zero2.yaml --num_processes 4 {ANY_PORT} --deepspeed_config_file ds_configs/zero2.json {TRAINING}",
    ),
    ("zero2", "lora", 2): (
        "zero2",
        2,
        f"{LAUNCH}/zero2.yaml --num_processes 2 {ANY_PORT} --deepspeed_config_file ds_configs/zero2.json {TRAINING}",
    ),
    ("zero3", "lora", 8): (
        "zero3",
        8,
        f"{LAUNCH}/zero3.yaml --num_processes 8 {ANY_PORT} --deepspeed_config_file ds_configs/zero3.json {TRAINING}",
    ),
    ("fsdp2", "lora", 4): ("fsdp2", 4, f"{LAUNCH}/fsdp2.yaml --num_processes 4 {ANY_PORT} {TRAINING}"),
}
"""Strategy, method and GPUs; what is launched. A change here changes what every user's `lora-dpo dpo` runs."""
OFFLOAD = "--deepspeed_config_file ds_configs/zero3_offload.json"
ON_CPU = {
    ("auto", "lora", 1): ("single", f"{LAUNCH}/single.yaml {TRAINING}"),
    ("auto", "lora", 2): ("ddp", f"{LAUNCH}/cpu_ddp.yaml --num_processes 2 {ANY_PORT} {TRAINING}"),
    ("auto", "qlora", 2): ("qlora", f"{LAUNCH}/cpu_qlora.yaml --num_processes 2 {ANY_PORT} {TRAINING}"),
    ("zero3_offload", "lora", 2): (
        "zero3_offload",
        f"{LAUNCH}/cpu_zero3_offload.yaml --num_processes 2 {ANY_PORT} {OFFLOAD} {TRAINING}",
    ),
}
"""Strategy, method and --processes on a machine without GPUs; what is launched."""


@pytest.fixture
def one_core():
    """Takes all but one core away from this process."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_the_command_line(gpus, one_core, case: tuple[str, str, int]) -> None:
    strategy, method, count = case
    gpus(count)
    launch = plan_launch(recipe(strategy, method), ARGUMENTS)
    accelerate = launch.command[0]
    assert Path(accelerate).resolve() == Path(sys.executable).parent.resolve() / "accelerate"
    assert (launch.strategy, launch.processes, launch.line.replace(accelerate, "accelerate")) == GOLDEN[case]


@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_the_command_line_without_gpus(gpus, one_core, case: tuple[str, str, int]) -> None:
    strategy, method, processes = case
    gpus(0)
    launch = plan_launch(recipe(strategy, method), ARGUMENTS, processes=processes)
    assert launch.processes == processes
    assert (launch.strategy, launch.line.replace(launch.command[0], "accelerate")) == ON_CPU[case]


@pytest.mark.parametrize("count", [1, 2, 512])
def test_the_cores_are_shared_by_the_processes(gpus, count: int) -> None:
    gpus(count)
    threads = plan_launch(recipe(batch=512), ARGUMENTS).environment["OMP_NUM_THREADS"]
    assert int(threads) == max(1, len(os.sched_getaffinity(0)) // count)


def test_the_user_s_own_number_of_threads_is_kept(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert plan_launch(recipe(), ARGUMENTS).environment == {}


def test_every_file_that_a_command_names_is_there_from_wherever_it_is_run(gpus, tmp_path, monkeypatch) -> None:
    gpus(4)
    monkeypatch.chdir(tmp_path)
    for strategy in ("single", "ddp", "zero2", "zero3", "zero3_offload", "fsdp2"):
        command = plan_launch(recipe(strategy), ARGUMENTS).command
        files = [word for word in command if word.endswith((".yaml", ".json")) and word != "mine.yaml"]
        assert len(files) == (2 if strategy.startswith("zero") else 1)
        for file in files:
            assert Path(file).is_absolute()
            assert Path(file).is_file()


def test_fewer_processes_than_gpus(gpus) -> None:
    gpus(8)
    launch = plan_launch(recipe("auto"), ARGUMENTS, processes=2)
    assert (launch.strategy, launch.processes) == ("ddp", 2)
    assert plan_launch(recipe("auto"), ARGUMENTS, processes=1).strategy == "single"
    assert plan_launch(recipe("zero3"), ARGUMENTS, processes=4).processes == 4


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "zero3_offload", "fsdp2"])
def test_a_strategy_for_gpus_needs_gpus(gpus, strategy: str) -> None:
    gpus(0)
    with pytest.raises(UserError, match=f"train.strategy {strategy} needs GPUs, and there is none") as caught:
        plan_launch(recipe(strategy), ARGUMENTS)
    assert "train.strategy=single" in caught.value.fix
    assert ("--processes 2" in caught.value.fix) == (strategy != "fsdp2")


def test_what_cannot_run_on_a_cpu_is_refused_however_many_processes_are_asked_for(gpus) -> None:
    gpus(0)
    with pytest.raises(UserError, match="train.strategy fsdp2 needs GPUs.*\n.*plain DDP instead"):
        plan_launch(recipe("fsdp2"), ARGUMENTS, processes=2)


@pytest.mark.parametrize(
    ("strategy", "count", "processes", "message"),
    [
        ("ddp", 2, 4, "4 processes need 4 GPUs; there are 2 on this machine.\nTake --processes 2, or leave it out."),
        ("auto", 2, 4, "4 processes need 4 GPUs; there are 2 on this machine."),
        ("auto", 1, 2, "2 processes need 2 GPUs; there are 1 on this machine.\nTake --processes 1, or leave it out."),
        ("single", 0, 2, "train.strategy single is one process, but --processes is 2.\nLeave --processes out"),
        ("single", 4, 2, "train.strategy single is one process, but --processes is 2.\nLeave --processes out"),
    ],
)
def test_more_processes_than_there_can_be_are_refused(
    gpus, strategy: str, count: int, processes: int, message: str
) -> None:
    gpus(count)
    with pytest.raises(UserError) as caught:
        plan_launch(recipe(strategy), ARGUMENTS, processes=processes)
    assert str(caught.value).startswith(message)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_starts(gpus) -> None:
    gpus(3)
    with pytest.raises(UserError, match="global_batch_size 16 cannot be shared equally by 3 processes"):
        plan_launch(recipe("ddp", micro=4), ARGUMENTS)
    gpus(1)
    with pytest.raises(UserError, match="micro_batch_size 3 x 1 process does not divide"):
        plan_launch(recipe(micro=3), ARGUMENTS)


@pytest.mark.parametrize(("count", "file"), [(0, "cpu_ddp"), (2, "ddp")])
def test_an_evaluation_by_several_processes(gpus, one_core, count: int, file: str) -> None:
    gpus(count)
    launch = plan_evaluation(["runs/mine", "--json"], processes=2)
    line = launch.line.replace(launch.command[0], "accelerate")
    assert line == f"{LAUNCH}/{file}.yaml --num_processes 2 {ANY_PORT} -m lora_dpo.eval runs/mine --json"
    assert (launch.processes, launch.what, launch.stops_in_order) == (2, "evaluation", False)


def test_an_evaluation_needs_a_gpu_a_process_where_there_are_any(gpus) -> None:
    gpus(2)
    with pytest.raises(UserError, match="3 processes need 3 GPUs; there are 2 on this machine"):
        plan_evaluation(["runs/mine"], processes=3)


NODES = Nodes(count=4, rank=2, head="node-a", port=23456)
OF_FOUR = "--main_process_port 23456 --num_machines 4 --machine_rank 2 --main_process_ip node-a"
ZERO3 = "--deepspeed_config_file ds_configs/zero3.json"
ON_NODES = {
    ("auto", 2): ("ddp", 8, f"{LAUNCH}/ddp.yaml --num_processes 8 {OF_FOUR} {TRAINING}"),
    ("zero3", 2): ("zero3", 8, f"{LAUNCH}/zero3.yaml --num_processes 8 {OF_FOUR} {ZERO3} {TRAINING}"),
    ("fsdp2", 1): ("fsdp2", 4, f"{LAUNCH}/fsdp2.yaml --num_processes 4 {OF_FOUR} {TRAINING}"),
}
"""Strategy and GPUs a node; what one of four nodes launches."""
TORCHRUN = "torchrun --nnodes 4 --node_rank 2 --nproc_per_node 2 --master_addr node-a --master_port 23456"


@pytest.mark.parametrize("case", ON_NODES, ids=str)
def test_the_command_line_on_one_of_several_nodes(gpus, one_core, case: tuple[str, int]) -> None:
    strategy, count = case
    gpus(count)
    launch = plan_launch(recipe(strategy), ARGUMENTS, nodes=NODES)
    line = launch.line.replace(launch.command[0], "accelerate")
    assert (launch.strategy, launch.processes, line) == ON_NODES[case]


def test_on_cpus_of_several_nodes_torchrun_starts_what_accelerate_would_not_join(gpus, one_core) -> None:
    gpus(0)
    launch = plan_launch(recipe("zero2"), ARGUMENTS, processes=2, nodes=NODES)
    assert shlex.join(launch.command).replace(launch.command[0], "torchrun") == f"{TORCHRUN} {TRAINING}"
    assert launch.environment == {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "ds_configs" / "zero2.json"),
        "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file",
    }
    with pytest.raises(UserError, match="train.strategy fsdp2 needs GPUs"):
        plan_launch(recipe("fsdp2"), ARGUMENTS, processes=2, nodes=NODES)


def test_two_jobs_on_one_node_do_not_share_a_port(gpus, one_core) -> None:
    gpus(2)
    launch = plan_launch(recipe("ddp"), ARGUMENTS, nodes=Nodes(port=20007))
    assert launch.line.endswith(f"ddp.yaml --num_processes 2 --main_process_port 20007 {TRAINING}")


def test_a_batch_must_be_shared_by_all_nodes(gpus) -> None:
    gpus(1)
    with pytest.raises(UserError, match="global_batch_size 16 cannot be shared equally by 3 processes"):
        plan_launch(recipe("ddp", micro=4), ARGUMENTS, nodes=Nodes(count=3, head="a"))
    with pytest.raises(UserError, match="single is one process, but the job has 4 nodes.\nTake one node"):
        plan_launch(recipe("single"), ARGUMENTS, nodes=NODES)
