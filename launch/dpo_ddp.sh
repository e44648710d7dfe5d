#!/usr/bin/env bash
# One process a GPU, each with the whole model: the fastest way while the model fits on one GPU.
#
#   launch/dpo_ddp.sh RECIPE [section.key=value ...]
#
# PROCESSES=N takes N processes instead of one a GPU; without GPUs it is 2, on the CPU.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo ddp "$@"
