#!/bin/sh
# Train on one machine, or on several that each run this script, with torchrun.
#
#   GPUS_PER_NODE=8 sh scripts/train_torchrun.sh --recipe internvl2_2b_v2pe_32k [more arguments of tools/train.py]
#   sh scripts/train_torchrun.sh --recipe internvl2_2b_v2pe_32k --dry-run      prints the settings, starts nothing
#
# All arguments: python tools/train.py --help. What they ask for is looked at before any process is started.
#
# On two machines, run on each, NODE_RANK 0 on the first and 1 on the second, all else alike:
#   RUN_ID=$(uuidgen)   # once, the same on both
#   RUN_ID=... NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host MASTER_PORT=29400 GPUS_PER_NODE=8 \
#       sh scripts/train_torchrun.sh --recipe ...
#
# Ctrl-C, SIGTERM and SIGUSR1 save and stop; a second Ctrl-C ends at once. Exit statuses: docs/launching.md.
#
# Environment:
#   GPUS_PER_NODE  processes on this machine (default: the GPUS of the run if given, else the GPUs found, else 1)
#   NNODES         machines (default: 1)
#   NODE_RANK      this machine's number, 0 is the first; several machines need it
#   MASTER_ADDR    the first machine, by a name or address all of them reach; several machines need it
#   MASTER_PORT    port the processes meet at; several machines need it (default on one: any that is free)
#   RUN_ID         name of the meeting, the same on all machines and hard to guess; several machines need it
#                  (default: the Slurm job's number, or on one machine a random one)
#   MAX_RESTARTS   times torchrun starts all processes again when one dies; they resume (default: 0)
#   PYTHON         interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
. "$root/scripts/launch.sh"

for argument in "$@"; do
    # Only a look at the settings: no processes to start.
    if [ "$argument" = --dry-run ]; then exec "$PYTHON" "$root/tools/train.py" ${GPUS:+--ranks "$GPUS"} "$@"; fi
done

GPUS_PER_NODE=${GPUS_PER_NODE:-${GPUS:-$(gpus_found)}}
if [ "$GPUS_PER_NODE" -lt 1 ]; then GPUS_PER_NODE=1; fi
start_with_torchrun "$root/tools/train.py" "$@"
