#!/usr/bin/env bash
# Training on the hosts of a host file, through the `deepspeed` launcher, started again after failures:
#   scripts/train_multinode.sh --hostfile HOSTS [--max-restarts N] RECIPE [key=value …] --output DIR …
# `--help` has the rest. Every host needs this folder, this environment and the data under the same paths, and ssh
# without a password; `aurora-ds doctor --hostfile HOSTS RECIPE …` checks that. Uses the Python environment that is
# active when aurora_ds and deepspeed are in it, else the repository's own.
set -euo pipefail
if ! python -c 'import importlib.util as i, sys; sys.exit(not (i.find_spec("deepspeed") and i.find_spec("aurora_ds")))' \
    2>/dev/null; then
    # shellcheck disable=SC1091
    source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
fi
exec python -m aurora_ds.multinode "$@"
