#!/usr/bin/env bash
# One process, on one GPU or on the CPU.
#
#   launch/dpo_single.sh RECIPE [section.key=value ...]
#
# Of several GPUs it takes the first that CUDA_VISIBLE_DEVICES shows.
set -euo pipefail
# shellcheck source=launch/_accelerate.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_accelerate.sh"
start_dpo single "$@"
