#!/usr/bin/env bash
# Sets everything up in .venv, then runs pytest with the given arguments; `-m "not slow"` leaves the long tests out.
set -euo pipefail

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    cat <<'HELP'
Usage: launch/test.sh [--slurm] [--browser] [ARGS]

Sets everything up in .venv, then runs `pytest ARGS` there:
  launch/test.sh                        every test; those with several processes take long
  launch/test.sh -m "not slow"          the quick ones
  launch/test.sh tests/data -k split    some
  launch/test.sh --slurm                every test, and those on a real Slurm; says first what it installs for them
  launch/test.sh --browser              every test, those in a browser too: installs Debian's chromium (0.4 GB)
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
extras=deepspeed,quantization,eval,ui,dev
arguments=()
for argument in "$@"; do
    case "$argument" in
        --slurm) ask_for_slurm ;;
        --browser)
            set_up_chromium
            extras+=,browser
            ;;
        *) arguments+=("$argument") ;;
    esac
done
set_up "$extras"
cd -- "$root"
exec "$venv/bin/python" -m pytest "${arguments[@]}"
