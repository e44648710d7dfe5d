#!/usr/bin/env bash
# DeepSpeed ZeRO-3, one process a GPU: the weights are divided as well, for models larger than a GPU.
#
#   launch/dpo_zero3.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs it is 2, on the CPU.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo zero3 "$@"
