#!/bin/sh
# Takes every preset, reduced, from HF to Megatron to HF through models of TP 1, 2, 4 x PP 1, 2, 4 and compares each tensor
# by its bytes: 16 processes at most, some minutes on two cores. The tests that always run take a part of it.
#
#   sh scripts/check_presets.sh [ARGUMENT OF PYTEST ...]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
exec "$python" -m pytest -q -m exhaustive tests/conversion/test_preset_round_trip.py "$@"
