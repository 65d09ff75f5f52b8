#!/bin/sh
# One command that shows what runs on a GPU, how right it is and how fast; about 17 minutes on one card of 80 GB.
#
#   bash scripts/check_gpu.sh [PARTS] [--json FILE] [--device auto|cpu|cuda] ...
#
# PARTS, all of them by default (letters or names):
#   a tests        the tests that need a GPU
#   b layouts      every parallel layout beside one process, several ranks on the one card under NCCL
#   c steps        training steps of full-size InternVL2-2B: one document of 33K tokens, a mixed pack, 130K tokens
#   d generation   first token, decoding one and eight answers, decoding behind a long cache
#   e peer         transformers' InternVL of the same shape, training and generating, on the same card
#   f kernels      attention and fused operations, each kernel's time
#   g families     every language model and both towers beside transformers' InternVL on the same card
#
# Everything it needs is made by itself. Prints one table, writes one JSON (--json), ends with 1 where a number is wrong.
# Without a GPU each part runs in a small form on the CPU: bash scripts/check_gpu.sh f --device cpu
# All flags: python tools/check_gpu.py --help
#
# It runs in .venv if there is one, else with `python3` and what is installed there. Packages that are missing are
# taken from the folder `wheels/` beside the checkout's files, or from WHEELS, where there is one; nothing is downloaded.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; else python=${PYTHON:-python3}; fi
wheels=${WHEELS:-$root/wheels}
if [ -d "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" "$wheels"/*.whl >&2
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "$python" "$root/tools/check_gpu.py" "$@"
