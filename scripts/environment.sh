# Sourced by the scripts beside it, not run. Makes <repository>/.venv with the versions of constraints.txt, or reuses it
# when setup.py, constraints.txt and the interpreter have not changed since; then activates it and goes offline.
# PYTHON=/path/to/python3.12 chooses the interpreter; AURORA_DS_VENV=DIR chooses another folder than .venv.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment="${AURORA_DS_VENV:-$repository/.venv}"
minimum="3.11" # of the pinned versions; setup.py itself allows 3.10

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < tuple(map(int, '$minimum'.split('.'))))" \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "No Python $minimum or newer with the venv module was found (tried: ${PYTHON:-python3 python3.13 python3.12 python3.11 python})." \
        "Install one (Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

prepare_environment() {
    local python wanted stamp="$environment/aurora_ds.stamp"
    python="$(find_python)" || return 1
    wanted="$({ "$python" -VV; echo "$repository"; cat "$repository/setup.py" "$repository/constraints.txt"; } | sha256sum | cut -d' ' -f1)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$environment/bin/aurora-ds" ]; then
        return
    fi
    echo "Installing aurora_ds into $environment (torch is a few gigabytes; this happens once)." >&2
    "$python" -m venv --clear "$environment" || return 1
    (cd "$repository" && "$environment/bin/python" -m pip install --quiet -c constraints.txt -e '.[dev]') || {
        echo "The installation did not finish; the message of pip is above. Run the same command again to retry." >&2
        return 1
    }
    echo "$wanted" >"$stamp"
}

prepare_environment || exit 1
# shellcheck disable=SC1091
source "$environment/bin/activate"
# Everything the product needs is in the package: nothing may be fetched while it runs.
export HF_HUB_OFFLINE=1
cd "$repository" || exit 1
