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
  launch/test.sh --browser              every test, those in a browser too: installs Debian's chromium (0.4 GB)
  .venv/bin/python -m pytest --help     pytest's own options, once it is set up
HELP
    exit 0
fi

# shellcheck source=launch/_setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"
extras=deepspeed,quantization,eval,ui,dev
words=()
for word in "$@"; do
    case "$word" in
        --browser)
            set_up_chromium
            extras+=,browser
            ;;
        *) words+=("$word") ;;
    esac
done
set_up "$extras"
cd -- "$root"
exec "$venv/bin/python" -m pytest "${words[@]}"
