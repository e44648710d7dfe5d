# shellcheck shell=bash
# Sourced by dpo_*.sh and multi_node.sh: what is around their one `accelerate launch`.

# The recipe's stage: dpo, or sft.
stage="${STAGE:-dpo}"
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
[[ ! -d "$root/.venv/bin" ]] || PATH="$root/.venv/bin:$PATH"

# Prints the comment at the top of the script that was called; without arguments that is an error.
show_help() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    [[ "${1:-}" == -h || "${1:-}" == --help ]] && exit 0
    exit 2
}

# GPUs that a process started here may use.
gpu_count() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^(GPU|MIG|[0-9])' || true
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

# The job's first node, or this machine.
first_host() {
    if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
        scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
    else
        echo 127.0.0.1
    fi
}

# share_cores PROCESSES: gives each of this machine's processes as many; a launcher would give it one.
share_cores() {
    local cores
    cores="$(nproc)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
}

# Puts what the recipe must say into `overrides`; with train.strategy every process checks that this is what runs.
asked_for() {
    overrides=("train.strategy=$1")
    [[ "$1" != qlora ]] || overrides+=(adapter.method=qlora)
}

# The recipe's key for further arguments of TRL.
further_arguments() {
    [[ "$stage" == sft ]] && echo sft.trl || echo train.trl
}

# start_dpo STRATEGY RECIPE [section.key=value ...]: one process a GPU of this machine; without GPUs two on the CPU.
start_dpo() {
    local strategy="$1" gpus
    shift
    [[ "${1:---}" != -* ]] || show_help "$@"
    gpus="$(gpu_count)"
    # Port 0 is any free one: others may train on this machine.
    start_dpo_on "$strategy" "${PROCESSES:-$((gpus ? gpus : 2))}" --main_process_port 0 -- "$@"
}

# start_dpo_on STRATEGY PROCESSES [FLAGS of accelerate launch] -- RECIPE [section.key=value ...]
start_dpo_on() {
    local strategy="$1" processes="$2" config
    shift 2
    config="$root/accelerate_configs/$strategy.yaml"
    if [[ "$(gpu_count)" == 0 && "$strategy" != single ]]; then
        config="$root/accelerate_configs/cpu_$strategy.yaml"
    fi
    if [[ ! -f "$config" ]]; then
        echo "There is no $config: the strategy is misspelt, or needs GPUs." >&2
        exit 2
    fi

    local -a flags=(--config_file "$config")
    [[ "$strategy" == single ]] || flags+=(--num_processes "$processes")
    # The path inside of the configuration is relative to the checkout.
    [[ "$strategy" != zero* ]] || flags+=(--deepspeed_config_file "$root/ds_configs/$strategy.json")
    while [[ "$1" != -- ]]; do
        flags+=("$1")
        shift
    done
    shift

    asked_for "$strategy"
    share_cores "$processes"
    set -x
    exec accelerate launch "${flags[@]}" -m "lora_dpo.$stage" "$@" "${overrides[@]}"
}
