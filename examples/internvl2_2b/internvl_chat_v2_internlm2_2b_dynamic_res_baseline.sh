#!/bin/sh
# The baseline: InternVL2-2B on the 32K mixture with ordinary positions.
#
#   PARTITION='your partition' GPUS=32 sh examples/internvl2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_baseline.sh
#
# LAUNCHER=pytorch starts it with torchrun on this machine instead of Slurm; --dry-run prints the settings and starts
# nothing:
#
#   LAUNCHER=pytorch GPUS=8 sh examples/internvl2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_baseline.sh
#   sh examples/internvl2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_baseline.sh --dry-run
#
# Arguments are passed on and win over the recipe's settings. Environment: GPUS, the processes in all, and what
# `sh scripts/train_srun.sh --help` and `sh scripts/train_torchrun.sh --help` list.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
case "${LAUNCHER:-slurm}" in
    slurm) launcher=train_srun.sh ;;
    pytorch) launcher=train_torchrun.sh ;;
    *) echo "error: LAUNCHER=$LAUNCHER is none of slurm, pytorch" >&2; exit 2 ;;
esac
exec sh "$root/scripts/$launcher" --recipe internvl2_2b_baseline_32k "$@"
