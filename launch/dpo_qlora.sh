#!/usr/bin/env bash
# LoRA on 4-bit weights, one process a GPU, each with the whole model: for one GPU's memory and less.
#
#   launch/dpo_qlora.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs it is 2, on the CPU.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo qlora "$@"
