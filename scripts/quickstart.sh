#!/usr/bin/env bash
# The main job on the built-in toy world, from a bare checkout: install, convert, fine-tune, evaluate, show a table.
# Arguments go to `aurora-ds quickstart` (`--fresh` starts clean; the default continues; `--help` lists the rest).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec aurora-ds quickstart "$@"
