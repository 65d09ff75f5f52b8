#!/bin/sh
# How the scripts of this folder start the processes of a run. They read this file in, with `root` set to the checkout.
# A start_ function replaces the shell by what it starts; the environment it reads is described in train_srun.sh and
# train_torchrun.sh, apart from what it demands.

. "${root:-$(dirname -- "$0")/..}/scripts/usage.sh"
read_in_by_others launch.sh "$@"

if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi

gpus_found() {
    if command -v nvidia-smi >/dev/null 2>&1; then nvidia-smi --list-gpus 2>/dev/null | wc -l | tr -d ' '; else echo 0; fi
}

# Has a tool look at its arguments on this machine, before anything is asked of others; a message ends this shell.
look_first() { # PROCESSES PROGRAM [ARGUMENT ...]
    if [ "${CHECK:-yes}" = no ] || ! "$PYTHON" -c 'import megatron_v2pe' 2>/dev/null; then return; fi
    status=0
    "$PYTHON" -m megatron_v2pe.device.torchrun --check --nproc-per-node "$@" || status=$?
    if [ "$status" -eq 2 ]; then exit 2; fi
}

start_with_srun() { # PROGRAM [ARGUMENT ...]; demands GPUS; without_slurm is what to type where there is none
    if ! command -v srun >/dev/null 2>&1; then
        echo "error: srun: not found, so this machine starts nothing with Slurm; without it: $without_slurm" >&2
        exit 2
    fi
    per_node=${GPUS_PER_NODE:-8}
    if [ "$GPUS" -lt "$per_node" ]; then per_node=$GPUS; fi
    if [ $((GPUS % per_node)) -ne 0 ]; then
        echo "error: GPUS=$GPUS is not a multiple of GPUS_PER_NODE=$per_node" >&2
        exit 2
    fi
    cpus=${CPUS_PER_TASK:-12}
    gres=${GRES:-gpu:$per_node}
    # Without MASTER_PORT the processes take a port that belongs to the job and its step, see docs/launching.md.
    if [ -n "${MASTER_PORT:-}" ]; then export MASTER_PORT; fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
    export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"  # lets tensor parallelism overlap on GPUs
    look_first "$GPUS" "$@"
    # The positional parameters become the whole command, built back to front: plain sh has no arrays. SRUN_ARGS are the
    # last options, so they win over ours.
    set -- "$PYTHON" -u "$@"
    # shellcheck disable=SC2086  # SRUN_ARGS is a list of words
    set -- --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
    if [ "$gres" != none ]; then set -- --gres="$gres" "$@"; fi
    if [ -z "${SLURM_JOB_ID:-}" ]; then  # a new allocation; inside a job these are settled
        if [ -n "${SIGNAL_SECONDS:-}" ]; then set -- --signal="TERM@$SIGNAL_SECONDS" "$@"; fi
        set -- --job-name="${JOB_NAME:-megatron-v2pe}" "$@"
        if [ -n "${QUOTA_TYPE:-}" ]; then set -- --quotatype="$QUOTA_TYPE" "$@"; fi
        if [ -n "${PARTITION:-}" ]; then set -- --partition="$PARTITION" "$@"; fi
    fi
    exec srun --nodes=$((GPUS / per_node)) --ntasks="$GPUS" --ntasks-per-node="$per_node" --cpus-per-task="$cpus" "$@"
}

start_alone() { # PROGRAM [ARGUMENT ...]; one process, whose messages nothing surrounds
    export RANK=0 LOCAL_RANK=0 WORLD_SIZE=1  # inside a Slurm job of several tasks too
    exec "$PYTHON" "$@"
}

start_with_torchrun() { # PROGRAM [ARGUMENT ...]; demands GPUS_PER_NODE
    # Threads of one process: its share of the cores, unless set.
    if [ -z "${OMP_NUM_THREADS:-}" ]; then
        OMP_NUM_THREADS=$(($(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) / GPUS_PER_NODE))
        if [ "$OMP_NUM_THREADS" -lt 1 ]; then OMP_NUM_THREADS=1; fi
        export OMP_NUM_THREADS
    fi
    export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"  # lets tensor parallelism overlap on GPUs
    exec "$PYTHON" -m megatron_v2pe.device.torchrun \
        --nnodes "${NNODES:-1}" --nproc-per-node "$GPUS_PER_NODE" ${NODE_RANK:+--node-rank "$NODE_RANK"} \
        ${MASTER_ADDR:+--master-addr "$MASTER_ADDR"} ${MASTER_PORT:+--master-port "$MASTER_PORT"} \
        ${RUN_ID:+--run-id "$RUN_ID"} --max-restarts "${MAX_RESTARTS:-0}" "$@"
}
