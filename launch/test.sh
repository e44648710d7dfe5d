#!/usr/bin/env bash
# Sets everything up in .venv, then runs pytest with the given arguments; `-m "not slow"` leaves the long tests out.
set -euo pipefail

# shellcheck source=launch/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"
set_up deepspeed,quantization,dev
cd -- "$root"
exec "$venv/bin/python" -m pytest "$@"
