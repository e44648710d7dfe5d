"""One node's part of a training job: `srun ... python -m lora_dpo.cluster.node RECIPE [section.key=value ...]`.

It starts one process a GPU, or PROCESSES_PER_NODE on a machine without GPUs, and joins them with those of the other
nodes. Which node this is it finds out itself, from what srun has set in its environment.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence

from lora_dpo.cluster.diagnosis import NodeReport
from lora_dpo.cluster.hardware import gpu_count
from lora_dpo.cluster.job import Job, TrainingJob
from lora_dpo.cluster.launch import Launch, plan_launch
from lora_dpo.cluster.nodes import Nodes, interface_towards
from lora_dpo.cluster.output import Output
from lora_dpo.cluster.supervise import NodeEnd, run_node
from lora_dpo.console import STOPPED_EXIT_CODE, errors_end_the_program
from lora_dpo.errors import UserError

_PROCESSES = "PROCESSES_PER_NODE"


def main(words: Sequence[str] | None = None) -> int:
    """Runs this node's processes.

    Args:
        words: The recipe and its overrides; None takes the process's own.

    Returns:
        0 when they went through, and when they stopped in order: another code would let srun kill the other nodes in
        the middle of leaving. The code itself goes into a file that `batch ended` reads.
    """
    words = list(sys.argv[1:] if words is None else words)
    with errors_end_the_program():
        return _run(words)


def _run(words: Sequence[str]) -> int:
    training = TrainingJob.of(words)
    job = training.job
    nodes = Nodes.of()
    output = Output(job.log(nodes.name if nodes.count > 1 else None), onward=1 if nodes.rank == 0 else None)
    with tempfile.TemporaryDirectory(prefix="lora-dpo-") as local:
        try:
            launch = plan(training, words, nodes)
        except UserError as error:
            end = NodeEnd(UserError.exit_code, str(error))
            output.write(f"Error: {error}\n")
        else:
            # DeepSpeed compiles there. In the home folder, a job that is killed meanwhile leaves a lock for ever.
            launch.environment.setdefault("TORCH_EXTENSIONS_DIR", os.environ.get("TORCH_EXTENSIONS_DIR", local))
            output.write(f"$ {shlex.join(launch.command)}\n")
            end = run_node(launch, training.run, output)
    report = NodeReport(nodes.name, end.exit_code, end.told, end.failures, tuple(output.last_lines))
    report.write(job.reports)
    return 0 if end.exit_code == STOPPED_EXIT_CODE else end.exit_code


def plan(training: TrainingJob, words: Sequence[str], nodes: Nodes) -> Launch:
    """Returns how this node's processes are started.

    Raises:
        UserError: There are no GPUs and nothing says how many processes to start, or the recipe does not fit.
    """
    each = os.environ.get(_PROCESSES)
    if each is not None and not (each.isdecimal() and int(each)):
        raise UserError(f"{_PROCESSES}={each} is no number of processes.", fix=f"Set {_PROCESSES}=2, or leave it out.")
    given = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if each is None and gpu_count() == 0 and (nodes.count > 1 or given):
        raise UserError(
            f"There is no GPU on {nodes.name}" + (f", where Slurm has given the job {given}." if given else "."),
            fix=f"Ask for some, as with `sbatch --gpus-per-node=4`; or set {_PROCESSES} to train on the CPUs.",
        )
    launch = plan_launch(training.recipe, words, processes=int(each) if each else None, nodes=nodes)
    launch.environment.update(_environment(training.job, nodes))
    return launch


def _environment(job: Job, nodes: Nodes) -> dict[str, str]:
    """Returns what lets the processes find each other, and what says most when they fail; the user's own values win."""
    settings = {
        "PYTHONFAULTHANDLER": "1",
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": str(job.reports / f"nccl-{nodes.name}-rank-"),
    }
    if nodes.count > 1:
        towards = nodes.head if nodes.rank else job.nodes[-1]
        if interface := interface_towards(towards):
            settings["GLOO_SOCKET_IFNAME"] = interface
    return {name: value for name, value in settings.items() if name not in os.environ}


if __name__ == "__main__":
    sys.exit(main())
