#!/usr/bin/env bash
# One strategy over several nodes; every node runs this script, and it starts one process a GPU there.
#
#   srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 launch/multi_node.sh STRATEGY RECIPE [section.key=value ...]
#
# In a Slurm job it finds out the rest by itself. Elsewhere (or to overrule Slurm) set on every node:
#   NUM_MACHINES        number of nodes
#   MACHINE_RANK        this node's number, from 0
#   MAIN_PROCESS_IP     name or address of node 0
#   MAIN_PROCESS_PORT   a free port of node 0, the same everywhere (29500)
#   PROCESSES_PER_NODE  processes a node (one a GPU); without GPUs it must be set, and torchrun starts them on the CPUs
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
if [[ $# -lt 2 ]]; then
    show_help "$@"
fi
strategy="$1"
shift

# Expanded here, in each node's own process: in the batch script SLURM_NODEID is 0 for all of them.
nodes="${NUM_MACHINES:-${SLURM_NNODES:-1}}"
node="${MACHINE_RANK:-${SLURM_NODEID:-0}}"
head="${MAIN_PROCESS_IP:-$(first_host)}"
# Below the ports that the system hands out, and another one for each job.
port="${MAIN_PROCESS_PORT:-$((${SLURM_JOB_ID:-0} ? 20000 + ${SLURM_JOB_ID:-0} % 10000 : 29500))}"
gpus="$(gpu_count)"
each="${PROCESSES_PER_NODE:-$gpus}"
if ((each == 0)); then
    echo "There is no GPU on $(hostname). Set PROCESSES_PER_NODE to train on the CPUs." >&2
    exit 2
fi

share_cores "$each"
if ((gpus == 0)); then
    # `accelerate launch` forms no process group on CPUs of several nodes; torchrun does.
    asked_for "$strategy"
    [[ "$strategy" != zero* ]] || overrides+=("$(further_arguments).deepspeed=$root/ds_configs/$strategy.json")
    set -x
    exec torchrun --nnodes "$nodes" --node_rank "$node" --nproc_per_node "$each" --master_addr "$head" \
        --master_port "$port" -m "lora_dpo.$stage" "$@" "${overrides[@]}"
fi
start_dpo_on "$strategy" $((nodes * each)) \
    --num_machines "$nodes" --machine_rank "$node" --main_process_ip "$head" --main_process_port "$port" -- "$@"
