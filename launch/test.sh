#!/usr/bin/env bash
# Sets everything up in .venv, then runs pytest with the given arguments; `-m "not slow"` leaves the long tests out.
set -euo pipefail

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    cat <<'HELP'
Usage: launch/test.sh [ARGS]

Sets everything up in .venv, then runs `pytest ARGS` there:
  launch/test.sh                        every test; those with several processes take long
  launch/test.sh -m "not slow"          the quick ones
  launch/test.sh tests/data -k split    some
  .venv/bin/python -m pytest --help     pytest's own options, once it is set up
HELP
    exit 0
fi

# shellcheck source=launch/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"
set_up deepspeed,quantization,eval,dev
cd -- "$root"
exec "$venv/bin/python" -m pytest "$@"
