#!/bin/sh
# V2PE's finding on a laptop: a tiny InternVL2 learns to read handwritten digits, goes on to documents of 256 tokens,
# once with ordinary positions and once with V2PE, and both models are asked in documents up to eight times as long.
#
#   bash examples/needle_on_a_laptop/run.sh [OUT] [--model qwen2] [--seeds K] [--parallel tp=2|cp=2|pp=2|dp=2]
#       [--to 16] [--losses-of OTHER_OUT] [--smoke]
#
# --model     family of the tiny model (default: internlm2)
# --seeds     repetitions (default: 1)
# --parallel  layout of both training stages over two processes (default: none)
# --to        longest documents asked, in trained lengths: 8 or 16 (default: 8)
# --losses-of another experiment whose losses are compared with this one's
# --smoke     all parts in tiny sizes, in a minute; learns nothing
#
# OUT holds everything it writes (default: work_dirs/needle_on_a_laptop); the same command goes on where it was stopped.
# Sets up .venv by itself; TORCH_PIP_ARGS as in setup_venv.sh. Exit status 0 only if the finding holds: at eight times
# the trained length V2PE at 1/16 reads more than 90% of the needles, ordinary positions less than 50%.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
sh "$root/scripts/setup_venv.sh" test
export PYTHON="$root/.venv/bin/python" PYTHONUNBUFFERED=1
# Megatron-Core says at every import that Apex and Transformer Engine are absent: as expected on a CPU.
export PYTHONWARNINGS=ignore
exec "$PYTHON" "$root/examples/needle_on_a_laptop/run.py" "$@"
