#!/bin/sh
# Evaluate a checkpoint on the six tasks of MM-NIAH's test split, those that are published. The validation split:
# scripts/evaluate.sh CHECKPOINT mmniah_val
#
#   STRIDE=64 sh scripts/evaluate_mmniah.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/evaluate.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi  # Slurm runs a copy of a batch script
benchmarks=mmniah_test
. "$root/scripts/evaluate_launch.sh"
