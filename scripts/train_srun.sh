#!/bin/sh
# Train on a Slurm cluster: one task per GPU, started by srun.
#
#   PARTITION='your partition' GPUS=32 sh scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k [more arguments]
#
# From a shell this asks Slurm for an allocation and waits; inside a job (`sbatch --requeue --signal=TERM@300 ...`) it
# starts a step of that job. Ten minutes of training are not lost when the time is up: SIGTERM makes every process save
# and stop, and the same command, or the requeued job, goes on from the newest checkpoint of its output folder.
#
# Environment:
#   PARTITION      Slurm partition (default: the cluster's default)
#   GPUS           processes in all, one GPU each (default: 32)
#   GPUS_PER_NODE  processes on a node (default: 8, or GPUS if that is less)
#   CPUS_PER_TASK  cores per process (default: 12)
#   QUOTA_TYPE     passed as --quotatype, an option only some sites have (default: not passed)
#   SRUN_ARGS      more srun options, split at spaces (e.g. "--time=48:00:00 --exclusive")
#   GRES           what to ask for per node (default: gpu:GPUS_PER_NODE; `none` asks for nothing)
#   MASTER_PORT    port of the first node the processes meet at (default: 34229)
#   JOB_NAME       (default: megatron-v2pe)
#   SIGNAL_SECONDS seconds before the time limit at which SIGTERM is sent (default: 300)
#   PYTHON         interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi

gpus=${GPUS:-32}
per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$per_node" ]; then per_node=$gpus; fi
if [ $((gpus % per_node)) -ne 0 ]; then
    echo "error: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$per_node" >&2
    exit 2
fi
cpus=${CPUS_PER_TASK:-12}
gres=${GRES:-gpu:$per_node}

export MASTER_PORT="${MASTER_PORT:-34229}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"

dry_run=false
for argument in "$@"; do
    if [ "$argument" = --dry-run ]; then dry_run=true; fi
done

# From here on the positional parameters are the whole command (plain sh has no arrays). Options go in front, so they
# are added last to first: SRUN_ARGS come last of all options and win.
set -- "$PYTHON" -u "$root/tools/train.py" "$@"
if $dry_run; then shift 2; set -- "$PYTHON" "$@"; fi
if ! $dry_run; then
    # Every process gets the signal, and srun waits for them to save instead of killing the step at the first exit.
    # shellcheck disable=SC2086  # SRUN_ARGS is a list of words
    set -- --signal="TERM@${SIGNAL_SECONDS:-300}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
    if [ "$gres" != none ]; then set -- --gres="$gres" "$@"; fi
    if [ -n "${QUOTA_TYPE:-}" ]; then set -- --quotatype="$QUOTA_TYPE" "$@"; fi
    if [ -n "${PARTITION:-}" ]; then set -- --partition="$PARTITION" "$@"; fi
    set -- srun --job-name="${JOB_NAME:-megatron-v2pe}" --nodes=$((gpus / per_node)) --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="$cpus" "$@"
fi
exec "$@"
