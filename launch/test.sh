#!/usr/bin/env bash
# Sets everything up in .venv, then runs pytest with the given arguments; `-m "not slow"` leaves the long tests out.
set -euo pipefail

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    cat <<'HELP'
Usage: launch/test.sh [--slurm] [ARGS]

Sets everything up in .venv, then runs `pytest ARGS` there:
  launch/test.sh                        every test; those with several processes take long
  launch/test.sh -m "not slow"          the quick ones
  launch/test.sh tests/data -k split    some
  launch/test.sh --slurm                every test, and those on a real Slurm; says first what it installs for them
  .venv/bin/python -m pytest --help     pytest's own options, once it is set up
HELP
    exit 0
fi

# Lets tests/slurm run, on a cluster of emulated nodes; where that cannot be they say so and are skipped.
ask_for_slurm() {
    local missing
    export LORA_DPO_TEST_SLURM=1
    [[ "$EUID" == 0 ]] || echo "The tests on a real Slurm need root, so they will be skipped." >&2
    missing="$("$(dirname -- "${BASH_SOURCE[0]}")/../tests/slurm/cluster.sh" missing | tr '\n' ' ')"
    if [[ "$EUID" == 0 && -n "$missing" ]]; then
        echo "The tests on a real Slurm will install with apt-get, services not started: $missing" >&2
    fi
}

# shellcheck source=launch/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"
arguments=()
for argument in "$@"; do
    if [[ "$argument" == --slurm ]]; then
        ask_for_slurm
    else
        arguments+=("$argument")
    fi
done
set_up deepspeed,quantization,eval,dev
cd -- "$root"
exec "$venv/bin/python" -m pytest "${arguments[@]}"
