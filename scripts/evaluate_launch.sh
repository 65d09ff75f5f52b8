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
# argument) set, their arguments as positional parameters. `copy_default` may be `all`.

. "${root:-$(dirname -- "$0")/..}/scripts/usage.sh"
read_in_by_others evaluate_launch.sh "$@"

usage() {
    show_usage "$0" "$root/scripts/evaluate_launch.sh"
}

refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

demand_number() { # NAME VALUE
    case "$2" in
        "" | *[!0-9]* | 0*) refuse "$1=$2 is not a whole number above 0" ;;
    esac
}

if asked_for_help "$@"; then usage; exit 0; fi
if [ "$#" -eq 0 ]; then usage >&2; exit 2; fi
case "$1" in -*) refuse "the checkpoint comes first, flags behind it: sh $0 CHECKPOINT $1 ..." ;; esac
checkpoint=$1
shift
if [ ! -d "$checkpoint" ]; then
    case "${checkpoint##*/}" in
        InternVL*) from="; to fetch it: huggingface-cli download OpenGVLab/${checkpoint##*/} --local-dir $checkpoint" ;;
        *) from="" ;;
    esac
    refuse "$checkpoint: no such folder; expected a Hugging Face or Megatron checkpoint, or a run$from"
fi
if [ -z "$benchmarks" ]; then
    case "${1:--}" in -*) refuse "the task comes second, flags behind it: sh $0 $checkpoint TASK" ;; esac
    benchmarks=$1
    shift
fi
. "$root/scripts/launch.sh"

# What the flags say that is also said by the environment.
stride="" several="" out="" data="" layout=""
tensor=1 pipeline=1 context=1
note() { # FLAG VALUE
    case "$1" in
        --rope_pos_id_stride | --rope-pos-id-stride) stride=$2 ;;
        --strides) several=yes ;;
        --out) out=$2 ;;
        --root) data=$2 ;;
        --tensor-model-parallel-size) tensor=$2 layout=given ;;
        --pipeline-model-parallel-size) pipeline=$2 layout=given ;;
        --context-parallel-size) context=$2 layout=given ;;
    esac
}
previous=""
for word in "$@"; do
    case "$word" in
        --*=*) note "${word%%=*}" "${word#*=}" ;;
        *) note "$previous" "$word" ;;
    esac
    previous=$word
done

if [ -n "${STRIDE:-}" ]; then
    if [ -z "$stride" ]; then
        echo "STRIDE=$STRIDE: asking with --rope_pos_id_stride $STRIDE" >&2
        set -- --rope_pos_id_stride "$STRIDE" "$@"
    elif [ "$stride" != "$STRIDE" ]; then
        refuse "STRIDE=$STRIDE, but --rope_pos_id_stride is $stride; write them alike, or leave STRIDE away"
    fi
    stride=$STRIDE
fi

if [ -z "$out" ]; then
    whole=$(CDPATH='' cd -- "$checkpoint" && pwd)
    name=${whole##*/}
    case "$name" in iter_*) whole=${whole%/*} name=${whole##*/}_$name ;; esac  # one of a run's checkpoints
    if [ -n "$several" ]; then asked=strides; elif [ -n "$stride" ]; then asked=stride_$(printf %s "$stride" | tr / -); else asked=as_trained; fi
    out=${OUT:-work_dirs/evaluate/$name/$asked}
elif [ "${OUT:-$out}" != "$out" ]; then
    refuse "OUT=$OUT, but --out is $out; leave one of them away"
fi

# How many processes: GPUS in all, `copy` of them for each copy of the model.
if [ -n "$layout" ]; then
    demand_number --tensor-model-parallel-size "$tensor"
    demand_number --pipeline-model-parallel-size "$pipeline"
    demand_number --context-parallel-size "$context"
    copy=$((tensor * pipeline * context))
    if [ "${GPUS_PER_TASK:-$copy}" != "$copy" ]; then
        refuse "GPUS_PER_TASK=$GPUS_PER_TASK, but the flags lay a copy of the model out over $copy processes"
    fi
else
    copy=${GPUS_PER_TASK:-1}
fi
nodes=${NNODES:-1}
demand_number GPUS_PER_TASK "$copy"
demand_number NNODES "$nodes"
if [ -z "${GPUS:-}" ]; then
    if [ -n "${PARTITION:-}" ]; then
        GPUS=${SLURM_NTASKS:-8}
    else
        GPUS=$((${GPUS_PER_NODE:-$(gpus_found)} * nodes))
    fi
    if [ "$GPUS" -eq 0 ]; then GPUS=$copy; fi
    found=$GPUS
    GPUS=$((found / copy * copy))
    if [ "$GPUS" -eq 0 ]; then refuse "a copy of the model takes $copy processes, but there are $found GPUs; set GPUS"; fi
    if [ "$GPUS" -ne "$found" ]; then echo "using $GPUS of $found GPUs: $copy share a copy of the model" >&2; fi
fi
demand_number GPUS "$GPUS"
if [ -z "$layout" ]; then
    if [ "${copy_default:-}" = all ] && [ -z "${GPUS_PER_TASK:-}" ]; then copy=$GPUS; fi
    if [ "$copy" -gt 1 ]; then set -- --context-parallel-size "$copy" "$@"; fi
fi
if [ $((GPUS % copy)) -ne 0 ]; then
    refuse "GPUS=$GPUS is not a multiple of the $copy processes that share one copy of the model"
fi
if [ -z "${PARTITION:-}" ]; then
    if [ $((GPUS % nodes)) -ne 0 ]; then refuse "GPUS=$GPUS is not a multiple of NNODES=$nodes"; fi
    if [ $((GPUS / nodes)) -gt "${GPUS_PER_NODE:-$GPUS}" ]; then
        refuse "GPUS=$GPUS are more than GPUS_PER_NODE=$GPUS_PER_NODE on NNODES=$nodes machines"
    fi
    GPUS_PER_NODE=$((GPUS / nodes))
else
    JOB_NAME=${JOB_NAME:-megatron-v2pe-evaluate}
fi

set -- "$root/tools/evaluate.py" --checkpoint "$checkpoint" --benchmarks "$benchmarks" --out "$out" "$@"
start=start_with_torchrun
if [ "$GPUS" -eq 1 ]; then start=start_alone; fi
without_slurm="the same command without PARTITION starts it on this machine"
if [ -n "${PARTITION:-}" ]; then
    start=start_with_srun
else
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
if [ -n "$several" ]; then out=$out/stride_\*; fi
printf '\nanswers  %s\nresults  %s\nreport   %s\n' "$out/BENCHMARK/answers-*.jsonl" "$out/BENCHMARK/results.json" \
    "python tools/report.py $out${data:+ --root $data} --out ${out%%/stride_\*}/report"
