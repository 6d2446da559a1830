#!/usr/bin/env bash
# The default suite from a bare checkout: install, lint, test. Arguments go to pytest, e.g. `scripts/test.sh tests/data -x`.
# Two test processes: a few tests start 2-rank runs themselves, so more would fight for the cores of a small machine.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
ruff check .
ruff format --check .
# One thread per process, or two processes with a thread pool each are slower than one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n 2 --dist loadfile "$@"
