#!/bin/sh
# Train on one machine, or on several that each run this script, with torchrun.
#
#   GPUS_PER_NODE=8 sh scripts/train_torchrun.sh --recipe internvl2_2b_v2pe_32k [more arguments of tools/train.py]
#
# On two machines, run on each, with the same MASTER_ADDR (a host all of them reach):
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host GPUS_PER_NODE=8 sh scripts/train_torchrun.sh --recipe ...
#
# Environment:
#   GPUS_PER_NODE  processes on this machine (default: the GPUS of the run if given, else the GPUs found, else 1)
#   NNODES         machines (default: 1)
#   NODE_RANK      this machine's number, 0 is the first (optional: without it machines number themselves)
#   MASTER_ADDR    host the machines meet at (default: 127.0.0.1)
#   MASTER_PORT    port they meet at (default: 34229)
#   RUN_ID         name of the meeting, the same on all machines (default: megatron-v2pe)
#   MAX_RESTARTS   times torchrun starts all processes again when one dies; they resume (default: 0)
#   PYTHON         interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/launch.sh"

for argument in "$@"; do
    # Only a look at the settings: no processes to start.
    if [ "$argument" = --dry-run ]; then exec "$PYTHON" "$root/tools/train.py" "$@"; fi
done

GPUS_PER_NODE=${GPUS_PER_NODE:-${GPUS:-$(gpus_found)}}
if [ "$GPUS_PER_NODE" -lt 1 ]; then GPUS_PER_NODE=1; fi
start_with_torchrun "$root/tools/train.py" "$@"
