#!/bin/sh
# Runs every language model and both towers in every layout beside transformers' InternVL; prints a table of errors.
#
#   bash scripts/check_families.sh [--families NAME ...] [--layouts NAME ...] [--json FILE]
#   bash scripts/check_families.sh --families "qwen3 tied" --layouts "one process" "PP2"
#
# Tiny models of random weights, made by itself, on the CPU: up to four processes with gloo. Every cell is the largest
# error of logits and of gradients over two steps, one with positions 0, 1, 2, ... and the checkpoint's rotary scaling,
# one with V2PE. Ends with 1 where an error is above what is allowed. Some ten minutes on two cores that do nothing else;
# the test suite runs a choice of it. All flags: python scripts/check_families.py --help
#
# It runs in .venv if there is one, else with `python3` (or PYTHON), where transformers has to be installed.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; else python=${PYTHON:-python3}; fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH OMP_NUM_THREADS
exec "$python" -W ignore "$root/scripts/check_families.py" "$@"
