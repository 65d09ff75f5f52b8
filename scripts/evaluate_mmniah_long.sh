#!/bin/sh
# Evaluate a checkpoint on MM-NIAH's contexts of 128K, 256K, 512K and 1M tokens. All processes share each context.
#
#   STRIDE=64 sh scripts/evaluate_mmniah_long.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# One length: scripts/evaluate.sh CHECKPOINT mmniah_long_128k
#
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/evaluate.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi  # Slurm runs a copy of a batch script
benchmarks=mmniah_long
copy_default=all  # a context of a million tokens needs the memory of all GPUs
. "$root/scripts/evaluate_launch.sh"
