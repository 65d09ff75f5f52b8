#!/bin/sh
# LoRA on two CPU cores: the model that the quickstart has trained learns other answers to some questions through
# adapters of rank 8, is asked with the adapter beside it, and once more after the adapter was merged into it.
#
#   bash scripts/quickstart.sh                        # first, if it was not run before
#   bash examples/lora/run.sh [QUICKSTART] [OUT]
#
# QUICKSTART is the folder the quickstart has written (default: work_dirs/quickstart), OUT a new folder for everything
# that is written here (default: work_dirs/lora).
#
# Exit status 0 only if at least 90% of the answers come back word for word, with the adapter and merged.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
cd "$root"
quickstart=${1:-work_dirs/quickstart}
out=${2:-work_dirs/lora}
if [ ! -d "$quickstart/hf_trained" ]; then
    echo "error: $quickstart/hf_trained is not there: run bash scripts/quickstart.sh first, or name its folder" >&2
    exit 2
fi
mkdir -p "$(dirname -- "$out")"
if ! mkdir "$out" 2>/dev/null; then
    echo "error: $out is there already, remove it (rm -r $out) or name another folder" >&2
    exit 1
fi

total=6
steps_of="lora"
after=""
. scripts/steps.sh

step "set up .venv"
sh scripts/setup_venv.sh test
finished
python="$root/.venv/bin/python"
export PYTHON="$python" PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore

step "make the data: what is in colour and what is in grey are exchanged"
"$python" examples/lora/make_data.py "$quickstart/data" "$out/data"
finished

step "train adapters of rank 8 on the language model and the tower, on 2 processes"
GPUS_PER_NODE=2 sh scripts/train_torchrun.sh --recipe quickstart \
    --model.model-name-or-path "$quickstart/hf_trained" --model.converted-dir "$out/converted" \
    --data.meta-path "$out/data/meta.json" --checkpoint.save "$out/run" \
    --adapter.kind lora --adapter.llm-rank 8 --adapter.backbone-rank 8 --model.freeze-mlp true \
    --optimizer.lr 5e-3 --train.train-steps 75
du -sk "$out"/run/iter_* "$out"/converted/*
finished

step "ask with the adapter beside its base"
"$python" examples/quickstart/ask.py "$out/run" "$out/data/meta.json"
finished

step "merge the adapter into the model"
"$python" tools/merge_adapter.py "$quickstart/hf_trained" "$out/run" "$out/merged"
finished

step "ask the merged model"
"$python" examples/quickstart/ask.py "$out/merged" "$out/data/meta.json"
finished

printf '\nlora: done in %d s\n' "$(in_all)"
printf '  %-24s %s\n' "$out/run" "the adapter, with its base's fingerprint" "$out/merged" "the merged checkpoint"
