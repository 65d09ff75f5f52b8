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
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi

for argument in "$@"; do
    # Only a look at the settings: no processes to start.
    if [ "$argument" = --dry-run ]; then exec "$PYTHON" "$root/tools/train.py" "$@"; fi
done

gpus_found() {
    if command -v nvidia-smi >/dev/null 2>&1; then nvidia-smi --list-gpus 2>/dev/null | wc -l | tr -d ' '; else echo 0; fi
}

per_node=${GPUS_PER_NODE:-${GPUS:-$(gpus_found)}}
if [ "$per_node" -lt 1 ]; then per_node=1; fi
nodes=${NNODES:-1}
address=${MASTER_ADDR:-127.0.0.1}
port=${MASTER_PORT:-34229}

# Threads of one process: its share of the cores, unless set.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$(($(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) / per_node))
    if [ "$OMP_NUM_THREADS" -lt 1 ]; then OMP_NUM_THREADS=1; fi
    export OMP_NUM_THREADS
fi

export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"  # lets tensor parallelism overlap on GPUs

exec "$PYTHON" -m torch.distributed.run \
    --nnodes "$nodes" --nproc_per_node "$per_node" ${NODE_RANK:+--node_rank "$NODE_RANK"} \
    --rdzv_backend c10d --rdzv_endpoint "$address:$port" --rdzv_id "${RUN_ID:-megatron-v2pe}" \
    --max_restarts "${MAX_RESTARTS:-0}" \
    "$root/tools/train.py" "$@"
