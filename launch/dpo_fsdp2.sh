#!/usr/bin/env bash
# PyTorch's FSDP2, one process a GPU: divides the weights as ZeRO-3 does, without DeepSpeed.
#
#   launch/dpo_fsdp2.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs Accelerate would run DDP, so it is refused.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo fsdp2 "$@"
