#!/usr/bin/env bash
# DeepSpeed ZeRO-2, one process a GPU: gradients and optimizer states are divided; for whole models.
#
#   launch/dpo_zero2.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs it is 2, on the CPU.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo zero2 "$@"
