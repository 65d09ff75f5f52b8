#!/bin/sh
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Train on a Slurm cluster, one task per GPU, each started by srun. From a shell:
#
#   PARTITION='your partition' GPUS=32 sh scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k [more arguments]
#
# waits for an allocation and shows the output. As a batch job, which Slurm can requeue:
#
#   sbatch --partition='your partition' --nodes=4 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=12 \
#       scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k [more arguments]
#
# A look at the settings, nothing asked of Slurm: sh scripts/train_srun.sh --recipe internvl2_2b_v2pe_32k --dry-run
# All arguments: python tools/train.py --help. Without Slurm: scripts/train_torchrun.sh.
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
#   MASTER_PORT     port of the first node the processes meet at (default: one of 20000 to 31999, by job and step)
#   JOB_NAME        (default: megatron-v2pe)
#   SIGNAL_SECONDS  seconds before the time limit at which SIGTERM is sent (default: 300)
#   CHECK           `no`: do not look at folders and settings before srun is called, as where this machine does not see
#                   what the nodes see (default: yes, if PYTHON is there)
#   PYTHON          interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
set -eu

# Slurm runs a copy of a batch script from a folder of its own; the checkout is then where sbatch was called.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ ! -f "$root/tools/train.py" ]; then root=${SLURM_SUBMIT_DIR:-$PWD}; fi
if [ ! -f "$root/tools/train.py" ]; then
    echo "error: $root holds no tools/train.py: call sbatch in the root of the checkout" >&2
    exit 2
fi
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
. "$root/scripts/launch.sh"

for argument in "$@"; do
    # Only a look at the settings: nothing is asked of Slurm.
    if [ "$argument" = --dry-run ]; then exec "$PYTHON" -u "$root/tools/train.py" ${GPUS:+--ranks "$GPUS"} "$@"; fi
done

GPUS=${GPUS:-${SLURM_NTASKS:-32}}
SIGNAL_SECONDS=${SIGNAL_SECONDS:-300}
without_slurm="LAUNCHER=pytorch GPUS=N in front of a script of examples/, or GPUS=N sh scripts/train_torchrun.sh $*"
start_with_srun "$root/tools/train.py" "$@"
