#!/bin/sh
# Evaluate a checkpoint on the general benchmarks: ChartQA, DocVQA val, AI2D, InfoVQA val, ScienceQA, POPE, MMMU val,
# MMBench test EN (a file for its server), SEED.
#
#   STRIDE=64 sh scripts/evaluate_auto.sh CHECKPOINT --rope_pos_id_version v2pe_fix --rope_pos_id_stride 64
#
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/evaluate.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi  # Slurm runs a copy of a batch script
benchmarks=general
. "$root/scripts/evaluate_launch.sh"
