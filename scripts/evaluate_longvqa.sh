#!/bin/sh
# Evaluate a checkpoint on the 17 tasks of Long-VQA at one length.
#
#   STRIDE=64 GROUP=40 GPUS_PER_TASK=2 sh scripts/evaluate_longvqa.sh CHECKPOINT \
#       --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
# GROUP is the length in thousands of tokens: 32 (default), 40, 48, 56 or 64. All lengths, one layout:
# scripts/evaluate.sh CHECKPOINT longvqa
#
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/evaluate.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi  # Slurm runs a copy of a batch script
benchmarks=longvqa_${GROUP:-32}k
. "$root/scripts/evaluate_launch.sh"
