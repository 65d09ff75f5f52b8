#!/bin/sh
# The main job from end to end, small enough for two CPU cores (118 s were measured): makes a small InternVL2 and a data set
# of real pictures, converts, trains on two processes (stopped half-way and resumed), exports, asks, draws the loss.
#
#   bash scripts/quickstart.sh [OUT] [--model FAMILY] [SETTING ...]
#
# FAMILY is what the small model is made like: internlm2 (default), qwen2, qwen3, llama, internlm3, phi3, internvit-6b.
# OUT is a new folder for everything it writes (default: work_dirs/quickstart). Settings go to tools/train.py, in both
# training runs; for example context parallel instead of tensor parallel:
#
#   bash scripts/quickstart.sh work_dirs/quickstart_cp --parallel.tensor-model-parallel-size 1 \
#       --parallel.sequence-parallel false --parallel.context-parallel-size 2
#
# Sets up .venv by itself; TORCH_PIP_ARGS as in setup_venv.sh. Exit status 0 only if at least 90% of the training
# questions come back right from the exported checkpoint.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
case "${1:-}" in
    --* | *.*=*) out="" ;; # a setting already: the default folder
    *)
        out=${1:-}
        [ "$#" -eq 0 ] || shift
        ;;
esac
case "$out" in
    "") out=work_dirs/quickstart ;;
    /*) ;;
    *) out=$PWD/$out ;;
esac
model=internlm2
left=$#
while [ "$left" -gt 0 ]; do # takes --model FAMILY out of the arguments, the settings stay in their order
    left=$((left - 1))
    case "$1" in
        --model)
            if [ "$left" -eq 0 ]; then echo "error: --model needs the name of a family: see --help" >&2; exit 2; fi
            model=$2 left=$((left - 1))
            shift
            ;;
        --model=*) model=${1#--model=} ;;
        *) set -- "$@" "$1" ;;
    esac
    shift
done
if [ "$#" -eq 0 ]; then layout="TP 2, sequence parallel, random strides"; else layout="the recipe with $*"; fi
cd "$root"

mkdir -p "$(dirname -- "$out")"
if ! mkdir "$out" 2>/dev/null; then
    echo "error: $out is in use, by an earlier quickstart or one that runs now." >&2
    echo "Remove it (rm -r $out) or name another folder: bash scripts/quickstart.sh OUT [SETTING ...]" >&2
    exit 1
fi

half=130 # of the 260 steps of the recipe
total=9
steps_of="quickstart"
after=""
. scripts/steps.sh

step "set up .venv"
sh scripts/setup_venv.sh test
finished
python="$root/.venv/bin/python"
export PYTHON="$python" PYTHONUNBUFFERED=1
# Megatron-Core says at every import that Apex and Transformer Engine are absent: as expected on a CPU.
export PYTHONWARNINGS=ignore
if [ -z "${MASTER_PORT:-}" ]; then
    MASTER_PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    export MASTER_PORT
fi

step "make a data set of real photographs and scans, in the V2PE-Data layout"
"$python" examples/quickstart/make_data.py "$out/data"
finished

step "make a small InternVL2 with random weights and its tokenizer, in the HF layout"
"$python" examples/quickstart/make_model.py "$out/hf" --texts "$out/data/annotation" --model "$model"
template=$(sed -n 's/^  "template": "\(.*\)",*$/\1/p' "$out/hf/config.json")
finished

step "convert it to a Megatron checkpoint"
"$python" tools/convert_checkpoint.py hf-to-mcore "$out/hf" "$out/megatron"
finished

train() {
    GPUS_PER_NODE=2 sh scripts/train_torchrun.sh --recipe quickstart \
        --model.model-name-or-path "$out/megatron" --data.meta-path "$out/data/meta.json" \
        --data.template "$template" --checkpoint.save "$out/run" "$@"
}

step "train on 2 processes ($layout), stop half-way, after step $half"
train --train.exit-step "$half" "$@"
finished

step "resume from the checkpoint and train to the end"
train "$@"
finished

step "convert the trained checkpoint back to the HF layout"
"$python" tools/convert_checkpoint.py mcore-to-hf "$out/run" "$out/hf_trained"
finished

step "draw the loss curve"
"$python" examples/quickstart/plot_loss.py "$out/run/logs/metrics.jsonl" "$out/loss.png" --stopped-at "$half"
finished

step "ask the exported checkpoint the training questions"
"$python" examples/quickstart/ask.py "$out/hf_trained" "$out/data/meta.json"
finished

printf '\nquickstart: done in %d s\n' "$(in_all)"
printf '  %-32s %s\n' "$out/data" "the data set" "$out/run" "checkpoints and logs (TensorBoard, metrics.jsonl)" \
    "$out/hf_trained" "the trained checkpoint in the HF layout" "$out/loss.png" "the loss curve"
