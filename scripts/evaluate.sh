#!/bin/sh
# Evaluate a checkpoint on one task.
#
#   sh scripts/evaluate.sh CHECKPOINT TASK [FLAG ...]
#   STRIDE=64 sh scripts/evaluate.sh pretrained/InternVL2-V2PE vqa-chartqa-test --rope_pos_id_stride 64
#
# TASK is a benchmark, a group of them or a task's published name, several separated by commas; all of them:
#   python tools/evaluate.py --list
#
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/evaluate.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi  # Slurm runs a copy of a batch script
benchmarks=""
. "$root/scripts/evaluate_launch.sh"
