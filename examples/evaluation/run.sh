#!/bin/sh
# A whole evaluation on two CPU cores: made-up sets in the formats of the general benchmarks, MVBench, MM-NIAH,
# MileBench and Long-VQA, the checkpoint the quickstart trained, two strides, and the report that compares them.
#
#   bash examples/evaluation/run.sh [QUICKSTART_OUT] [OUT]
#
# QUICKSTART_OUT is the folder of a finished scripts/quickstart.sh (default: work_dirs/quickstart, which is made first
# if it is not there), OUT the folder for everything written here (default: work_dirs/evaluation). The same command
# again goes on where it was stopped; what has an answer is not asked again.
#
# Sets up .venv by itself; TORCH_PIP_ARGS as in setup_venv.sh. One thread per process, unless OMP_NUM_THREADS is set.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
absolute() { case "$1" in /*) printf %s "$1" ;; *) printf %s "$PWD/$1" ;; esac; }
trained=$root/work_dirs/quickstart
out=$root/work_dirs/evaluation
if [ -n "${1:-}" ]; then trained=$(absolute "$1"); fi
if [ -n "${2:-}" ]; then out=$(absolute "$2"); fi
cd "$root"

if [ -z "${1:-}" ] && [ ! -e "$trained" ]; then bash scripts/quickstart.sh "$trained"; fi
checkpoint=$trained/hf_trained
if [ ! -d "$checkpoint" ]; then
    echo "error: $trained holds no hf_trained: it is not the folder of a finished quickstart" >&2
    echo "Make one first: bash scripts/quickstart.sh $trained" >&2
    exit 1
fi

strides="4 16"
total=8
steps_of="evaluation"
after="the same command goes on"
. scripts/steps.sh

step "set up .venv"
sh scripts/setup_venv.sh test,video
finished
python="$root/.venv/bin/python"
export PYTHON="$python" PYTHONUNBUFFERED=1
# Megatron-Core says at every import that Apex and Transformer Engine are absent: as expected on a CPU.
export PYTHONWARNINGS=ignore
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step "make small sets in the formats of the benchmarks"
"$python" tools/make_synthetic_benchmarks.py "$out/benchmarks" general mvbench mmniah_test milebench longvqa_32k
finished

evaluate() { # SCRIPT CHECKPOINT [FLAG ...], at every stride, each in a folder of its own
    script=$1
    shift
    for stride in $strides; do
        STRIDE=$stride OUT=$out/stride_$stride GPUS=2 sh "scripts/$script" "$@" \
            --rope_pos_id_version v2pe_fix --rope_pos_id_stride "$stride" --root "$out/benchmarks" \
            --converted-dir "$out/converted" --device cpu
    done
}

step "general benchmarks, two copies of the model"
evaluate evaluate_auto.sh "$checkpoint"
finished

step "MVBench, two copies of the model"
evaluate evaluate.sh "$checkpoint" mvbench
finished

step "MM-NIAH, two copies of the model"
evaluate evaluate_mmniah.sh "$checkpoint"
finished

step "MileBench, one copy laid out over both processes (tensor parallel)"
evaluate evaluate_milebench.sh "$checkpoint" --tensor-model-parallel-size 2
finished

step "Long-VQA 32K, both processes share each context"
GROUP=32 GPUS_PER_TASK=2
export GROUP GPUS_PER_TASK
evaluate evaluate_longvqa.sh "$checkpoint"
finished

step "report"
"$python" tools/report.py "$out/stride_4" "$out/stride_16" --root "$out/benchmarks" --out "$out/report"
# Of its two tables the rows of these runs; the report has the published ones too.
sed -n '/^## General/,/^## Completeness/p' "$out/report/report.md" | grep -E '^## (General|Long)|^\| (Model|stride_)'
finished

printf '\nevaluation: done in %d s\n' "$(in_all)"
printf '  %-40s %s\n' "$out/stride_*/BENCHMARK" "answers and results" "$out/report" "the report"
