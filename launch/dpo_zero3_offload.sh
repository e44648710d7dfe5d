#!/usr/bin/env bash
# DeepSpeed ZeRO-3 with what is not in use in the node's memory: slow, and the last resort.
#
#   launch/dpo_zero3_offload.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs it is 2, on the CPU.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo zero3_offload "$@"
