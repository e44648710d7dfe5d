# shellcheck shell=bash
# Sourced by the launch scripts: `set_up EXTRAS` leaves a complete .venv in the checkout, or ends the script.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"

# What would land in the home directory stays with the checkout. HF_HOME is left alone: models are shared between projects.
export LORA_DPO_CACHE="${LORA_DPO_CACHE:-$venv/cache/lora-dpo}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$venv/cache/matplotlib}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$venv/cache/torch_extensions}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$venv/cache/triton}"

# Prints the version; fails on a Python that is too old (or not there). The code is valid in every Python, even 2.
_python_version() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the Python to set up with: $PYTHON if it is set, else the one that .venv has, else the first on PATH.
_find_python() {
    local candidate version newest=""
    local -a candidates=("$venv/bin/python" python3 python3.14 python3.13 python3.12 python3.11 python)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if version="$(_python_version "$candidate")"; then
            printf '%s\n' "$candidate"
            return
        fi
        [[ -n "$newest" || -z "$version" ]] || newest="$candidate is Python $version"
    done
    if [[ -z "$newest" ]]; then
        newest="${PYTHON:-python3} does not run"
    fi
    echo "lora-dpo needs Python 3.11 or newer, but $newest:" \
        "install a newer one, or name it, as in PYTHON=/path/to/python3.12 ${0}" >&2
    return 2
}

set_up() {
    local python
    python="$(_find_python)" || exit 2
    {
        # Two calls at once must not install into the same .venv. Where locks are not to be had, the user is trusted.
        if command -v flock >/dev/null; then
            local status=0
            flock --timeout 1 --conflict-exit-code 75 9 2>/dev/null || status=$?
            if ((status == 75)); then
                echo "Another call is setting this checkout up: waiting for it." >&2
                flock 9
            fi
        fi
        "$python" -E -s "$root/launch/install.py" --extras "$1" || exit $?
    } 9<"$root"
}

# Installs Debian's chromium for the tests in a browser, if there is none; they are skipped where that cannot be.
set_up_chromium() {
    [[ -z "${LORA_DPO_CHROMIUM:-}" ]] && ! command -v chromium >/dev/null || return 0
    local -a as_root=() packages=(chromium fonts-dejavu-core)
    ((EUID == 0)) || as_root=(sudo)
    echo "Installing ${packages[*]} by apt-get for the tests in a browser: 0.4 GB." >&2
    "${as_root[@]}" apt-get update >&2 || true # an old list may still do
    "${as_root[@]}" apt-get install -y --no-install-recommends "${packages[@]}" >&2 ||
        echo "CHROMIUM COULD NOT BE INSTALLED: the tests in a browser are skipped. Install it, or name it in LORA_DPO_CHROMIUM." >&2
}
