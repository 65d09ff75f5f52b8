#!/bin/sh
# The 256K stage with context parallel size 8 (--chunk_num 8 --attn_type ring), reconstructed: see the recipe.
# This version refuses context parallelism: the run stops with that message, --dry-run shows its settings.
#
#   PARTITION='your partition' GPUS=32 sh examples/internvl2_2b/internvl_chat_v2_internlm2_2b_dynamic_res_v2pe_256k.sh
#
# LAUNCHER=pytorch starts it with torchrun on this machine instead of Slurm. Arguments are passed on and win over the
# recipe's settings. Further environment: scripts/train_srun.sh, scripts/train_torchrun.sh.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
case "${LAUNCHER:-slurm}" in
    slurm) launcher=train_srun.sh ;;
    pytorch) launcher=train_torchrun.sh ;;
    *) echo "error: LAUNCHER=$LAUNCHER is none of slurm, pytorch" >&2; exit 2 ;;
esac
exec sh "$root/scripts/$launcher" --recipe internvl2_2b_v2pe_256k "$@"
