#!/bin/sh
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#
# Train on a Slurm cluster, one task per GPU, each started by srun. From a shell:
#
#   PARTITION='your partition' GPUS=32 sh scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k [more arguments]
#
# waits for an allocation and shows the output. As a batch job, which Slurm can requeue:
#
#   sbatch --partition='your partition' --nodes=4 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=12 \
#       scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k [more arguments]
#
# Before the time limit, and when the job is preempted, every process gets SIGTERM, saves and stops. The requeued job,
# or the same command given again, goes on from the newest checkpoint of its output folder.
#
# Environment:
#   PARTITION       Slurm partition (default: the cluster's default)
#   GPUS            processes in all, one GPU each (default: the tasks of the batch job, else 32)
#   GPUS_PER_NODE   processes on a node (default: 8, or GPUS if that is less)
#   CPUS_PER_TASK   cores per process (default: 12)
#   QUOTA_TYPE      passed as --quotatype, an option only some sites have (default: not passed)
#   SRUN_ARGS       more srun options, split at spaces, e.g. '--time=48:00:00 --exclusive'
#   GRES            what to ask for per node (default: gpu:GPUS_PER_NODE; `none` asks for nothing)
#   MASTER_PORT     port of the first node the processes meet at (default: 34229)
#   JOB_NAME        (default: megatron-v2pe)
#   SIGNAL_SECONDS  seconds before the time limit at which SIGTERM is sent (default: 300)
#   PYTHON          interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
set -eu

# Slurm runs a copy of a batch script from a folder of its own; the checkout is then where sbatch was called.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/train.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi
if [ ! -f "$root/tools/train.py" ]; then
    echo "error: $root holds no tools/train.py: call sbatch in the root of the checkout" >&2
    exit 2
fi
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$root/.venv/bin/python" ]; then PYTHON="$root/.venv/bin/python"; else PYTHON=python3; fi
fi

gpus=${GPUS:-${SLURM_NTASKS:-32}}
per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$per_node" ]; then per_node=$gpus; fi
if [ $((gpus % per_node)) -ne 0 ]; then
    echo "error: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$per_node" >&2
    exit 2
fi
cpus=${CPUS_PER_TASK:-12}
gres=${GRES:-gpu:$per_node}

dry_run=false
for argument in "$@"; do
    if [ "$argument" = --dry-run ]; then dry_run=true; fi
done

# The positional parameters become the whole command, built back to front: plain sh has no arrays. SRUN_ARGS are the
# last options, so they win over ours.
set -- "$PYTHON" -u "$root/tools/train.py" "$@"
if $dry_run; then exec "$@"; fi  # only a look at the settings: nothing is asked of Slurm

export MASTER_PORT="${MASTER_PORT:-34229}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"  # lets tensor parallelism overlap on GPUs
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
set -- --kill-on-bad-exit=1 ${SRUN_ARGS:-} "$@"
if [ "$gres" != none ]; then set -- --gres="$gres" "$@"; fi
if [ -z "${SLURM_JOB_ID:-}" ]; then  # a new allocation; inside a job these are settled
    set -- --job-name="${JOB_NAME:-megatron-v2pe}" --signal="TERM@${SIGNAL_SECONDS:-300}" "$@"
    if [ -n "${QUOTA_TYPE:-}" ]; then set -- --quotatype="$QUOTA_TYPE" "$@"; fi
    if [ -n "${PARTITION:-}" ]; then set -- --partition="$PARTITION" "$@"; fi
fi
exec srun --nodes=$((gpus / per_node)) --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="$cpus" "$@"
