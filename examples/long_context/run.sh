#!/bin/sh
# Long context on two CPU cores: makes a small InternVL2 and documents of about 8,000 tokens with some 90 pictures each,
# trains on two processes that share every document (context parallel), then the same first steps on one process, and
# compares: losses, speed, memory.
#
#   bash examples/long_context/run.sh [OUT] [--tokens N] [SETTING ...]
#
# OUT is a new folder for everything it writes (default: work_dirs/long_context), N the length of a document (default:
# 8192). Settings go to tools/train.py, in both runs; --parallel.cp-comm-type a2a exchanges heads instead of a ring.
#
# Sets up .venv by itself; TORCH_PIP_ARGS as in setup_venv.sh. One thread per process, unless OMP_NUM_THREADS is set.
# Exit status 0 only if the losses of both runs agree to 1e-5 of their size.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
case "${1:-}" in
    --* | *.*=*) out="" ;; # no folder named
    *)
        out=${1:-}
        [ "$#" -eq 0 ] || shift
        ;;
esac
case "$out" in
    "") out=work_dirs/long_context ;;
    /*) ;;
    *) out=$PWD/$out ;;
esac
tokens=8192
if [ "${1:-}" = --tokens ]; then
    tokens=${2:-}
    case "$tokens" in
        "" | *[!0-9]*)
            echo "error: --tokens needs a whole number, for example --tokens 16384" >&2
            exit 2
            ;;
    esac
    shift 2
fi
cd "$root"

mkdir -p "$(dirname -- "$out")"
if ! mkdir "$out" 2>/dev/null; then
    echo "error: $out is in use, by an earlier run or one that goes on now." >&2
    echo "Remove it (rm -r $out) or name another folder: bash examples/long_context/run.sh OUT" >&2
    exit 1
fi

compared=6 # of the 24 steps of the recipe
total=7
steps_of="long context"
after=""
. scripts/steps.sh

step "set up .venv"
sh scripts/setup_venv.sh test
finished
python="$root/.venv/bin/python"
export PYTHON="$python" PYTHONUNBUFFERED=1
# Megatron-Core says at every import that Apex and Transformer Engine are absent: as expected on a CPU.
export PYTHONWARNINGS=ignore
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [ -z "${MASTER_PORT:-}" ]; then
    MASTER_PORT=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    export MASTER_PORT
fi

step "make long documents: pictures and text, and a question about one picture at the end"
"$python" examples/long_context/make_data.py "$out/data" --tokens "$tokens"
finished

step "make a small InternVL2 with random weights and its tokenizer, in the HF layout"
"$python" examples/quickstart/make_model.py "$out/hf" --texts "$out/data/texts"
finished

step "convert it to a Megatron checkpoint"
"$python" tools/convert_checkpoint.py hf-to-mcore "$out/hf" "$out/megatron"
finished

train() { # PROCESSES RUN [SETTING ...]
    processes=$1
    run=$2
    shift 2
    GPUS_PER_NODE=$processes sh scripts/train_torchrun.sh --recipe long_context \
        --model.model-name-or-path "$out/megatron" --data.meta-path "$out/data/meta.json" \
        --data.max-seq-length "$tokens" --data.max-packed-tokens "$tokens" \
        --data.num-images-expected $((tokens / 16)) --checkpoint.save "$run" "$@"
}

step "train on 2 processes that share each document${*:+ (the recipe with $*)}"
train 2 "$out/run" "$@"
finished

step "train the first $compared steps on 1 process"
train 1 "$out/run_one_process" "$@" --parallel.context-parallel-size 1 --parallel.tensor-model-parallel-size 1 \
    --parallel.sequence-parallel false --train.exit-step "$compared"
finished

step "compare the two"
"$python" examples/long_context/compare.py "2 processes" "$out/run/logs/metrics.jsonl" \
    "1 process" "$out/run_one_process/logs/metrics.jsonl"
finished

printf '\nlong context: done in %d s\n' "$(in_all)"
printf '  %-36s %s\n' "$out/data" "the documents" "$out/run" "checkpoint and logs of 2 processes" \
    "$out/run_one_process" "checkpoint and logs of 1 process"
