#!/bin/sh
# Environment of the evaluate scripts, all of it optional:
#   STRIDE          positions a tile spans; names the output folder, and must agree with --rope_pos_id_stride where
#                   both are given. Given alone it is that flag too: a folder never says another stride than was asked
#   OUT             folder of answers and results (default: work_dirs/evaluate/CHECKPOINT/stride_STRIDE; without a
#                   stride, which leaves the checkpoint's own: .../as_trained)
#   GPUS_PER_TASK   processes that share one copy of the model and each context (--context-parallel-size); leave it
#                   away where the flags say how a copy is laid out (default: 1; mm_niah-1M: all of GPUS)
#   GPUS            processes in all; further copies share the questions (default: the GPUs found, without one a
#                   single copy on the CPU; on Slurm the tasks of the job, else 8)
#   PARTITION       Slurm partition: processes are started by srun. Without it, by torchrun on this machine (a single
#                   one by itself)
#   On Slurm: GPUS_PER_NODE, CPUS_PER_TASK, QUOTA_TYPE, SRUN_ARGS, GRES, JOB_NAME, MASTER_PORT, CHECK, as in
#   train_srun.sh
#   On machines: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, RUN_ID, as in train_torchrun.sh
#   PYTHON          interpreter (default: .venv/bin/python of this checkout if there is one, else python3)
#
# The folder it is started in holds data/ and dataset/, see docs/evaluation_data.md; --root names another. The same
# command again goes on where it was stopped. Flags go to tools/evaluate.py: python tools/evaluate.py --help
set -eu
# Read in by the evaluate scripts, with `root` (the checkout) and `benchmarks` (what is asked; nothing: the second
# argument) set, their arguments as positional parameters. `copy_default` may be `all`. What flags and variables mean
# together is decided in Python: megatron_v2pe/evaluate/launch_plan.py.

. "${root:-$(dirname -- "$0")/..}/scripts/usage.sh"
read_in_by_others evaluate_launch.sh "$@"

usage() {
    show_usage "$0" "$root/scripts/evaluate_launch.sh"
}

if asked_for_help "$@"; then usage; exit 0; fi
if [ "$#" -eq 0 ]; then usage >&2; exit 2; fi
. "$root/scripts/launch.sh"

# Sets GPUS, GPUS_PER_NODE or JOB_NAME, start, out, ending, and the command as positional parameters.
found=0
if [ -n "${PARTITION:-}" ]; then
    found=${SLURM_NTASKS:-8}
elif [ -z "${GPUS:-}${GPUS_PER_NODE:-}" ]; then
    found=$(gpus_found)
fi
planner=$PYTHON
if ! command -v "$planner" >/dev/null 2>&1; then planner=python3; fi  # an interpreter of Slurm's nodes alone
plan=$(PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$planner" -m megatron_v2pe.evaluate.launch_plan \
    "$0" "$benchmarks" "${copy_default:-}" "$found" "$@") || exit $?
eval "$plan"
without_slurm="the same command without PARTITION starts it on this machine"
if [ -z "${PARTITION:-}" ]; then
    export MEGATRON_V2PE_LAUNCHER=$$  # what is started here ends with this shell, whatever ends it
fi

# A shell that waits for a program in the foreground dies of a signal and leaves the program behind. Where all of them
# got it, from the keyboard or Slurm, the program has a second to end by itself.
("$start" "$@") &
child=$!
trap 'sleep 1; kill "$child" 2>/dev/null || :' HUP INT TERM
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do  # a signal ends the wait before the program
    status=0
    wait "$child" || status=$?
done

if [ "$status" -eq 2 ]; then exit 2; fi  # what has to be mended was said, and stays the last line
if [ "$status" -ne 0 ]; then
    if [ -d "$out" ]; then kept="; what is answered is in $out, the same command goes on from there"; else kept=""; fi
    echo "evaluation ended with status $status$kept" >&2
    exit "$status"
fi
printf '%s\n' "$ending"
