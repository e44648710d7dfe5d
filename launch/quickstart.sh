#!/usr/bin/env bash
# Sets everything up in .venv, then aligns a small model with bundled preferences on this machine.
set -euo pipefail

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    cat <<'HELP'
Usage: launch/quickstart.sh [ARGS]

The first call sets everything up in .venv (it says beforehand how much it downloads); every call then runs
`lora-dpo quickstart ARGS`: a small model is trained by LoRA + DPO on bundled preferences, evaluated,
reported and merged. It needs Python 3.11 or newer and no GPU. After the first call it works without a network.

Environment:
  PYTHON          the Python to set up with (default: the first of python3, python3.14 .. python3.11, python that will do)
  LORA_DPO_TORCH  cpu or cuda: the build of torch to prefer (default: cuda where there is an NVIDIA GPU)

After the first call `.venv/bin/lora-dpo quickstart --help` explains ARGS, and deleting .venv undoes the setup.
HELP
    exit 0
fi

# shellcheck source=launch/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"
set_up deepspeed,quantization
exec "$venv/bin/lora-dpo" quickstart "$@"
