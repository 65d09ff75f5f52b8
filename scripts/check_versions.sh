#!/bin/sh
# Tests one set of versions: Python, Megatron-Core and torch, in an environment made for it; prints one line a set.
#
#   bash scripts/check_versions.sh [PYTHON [MEGATRON_CORE [TORCH [PYTEST ARGUMENTS]]]]
#   bash scripts/check_versions.sh python3.12 0.19.2 2.13.0
#
# PYTHON is an interpreter (default python3); Megatron-Core and torch default to the versions of constraints.txt.
# Everything else is installed within the ranges of setup.py, whatever is newest. Without pytest arguments it runs the
# tests that depend on these three: models, parallelism, device, training and checkpoints in one process, conversion,
# and layouts and checkpoints in several. The checkout is copied first, so that it may be edited meanwhile.
# Environment:
#   ENVIRONMENT     folder of the environment: kept, and completed when it exists (default: a temporary one, removed)
#   TORCH_PIP_ARGS  more arguments for the installation of torch, e.g. an index that serves CPU-only builds (the build
#                   of the default index takes 5 GB of disk with the CUDA libraries it brings; it runs without a GPU)
#   WORKERS         tests at a time (default 2)
# Ends with pytest's status, or 1 where the set cannot be installed.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
pinned() { sed -n "s/^$1==//p" "$root/constraints.txt"; }
python=${1:-python3}
mcore=${2:-$(pinned megatron-core)}
torch=${3:-$(pinned torch)}
shift "$(($# < 3 ? $# : 3))"

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
environment=${ENVIRONMENT:-$scratch/environment}
log=$scratch/log

fail() {
    tail -n 30 "$log" >&2
    printf 'Python %s, megatron-core %s, torch %s: %s\n' "$python" "$mcore" "$torch" "$1"
    exit 1
}

mkdir "$scratch/tree"
tar -C "$root" -cf - megatron_v2pe tests tools scripts examples docs setup.py pyproject.toml constraints.txt README.md \
    | tar -C "$scratch/tree" -xf -
if [ ! -x "$environment/bin/python" ]; then
    "$python" -m venv "$environment" >"$log" 2>&1 || fail "no environment could be made"
fi
pip() { "$environment/bin/python" -m pip --disable-pip-version-check -q "$@" >>"$log" 2>&1; }

# torch first and alone, as the installation instructions have it; the same two versions are then held fixed.
# shellcheck disable=SC2086  # TORCH_PIP_ARGS is a list of words
pip install ${TORCH_PIP_ARGS:-} "torch==$torch" "setuptools>=77" || fail "torch could not be installed"
printf 'megatron-core==%s\ntorch==%s\n' "$mcore" "$torch" >"$scratch/set.txt"
# The ranges of setup.py for these two give way: a set outside them can be tried before they are widened.
sed -i -E 's/"(megatron-core|torch)[=<>!~][^"]*"/"\1"/' "$scratch/tree/setup.py"
pip install --no-build-isolation -c "$scratch/set.txt" "$scratch/tree[test,video]" || fail "cannot be installed together"
# The tests run what the tree holds.
pip uninstall -y megatron-v2pe || fail "the installed copy could not be removed"

cd "$scratch/tree"
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH="$scratch/tree"
export MEGATRON_V2PE_SHARED=${MEGATRON_V2PE_SHARED:-$(dirname -- "$root")/shared}
set_of_versions=$("$environment/bin/python" -W ignore -c 'if True:
    import platform, torch, importlib.metadata as metadata
    place = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    core = metadata.version("megatron-core")
    print(f"Python {platform.python_version()}, megatron-core {core}, torch {torch.__version__}, {place}")' 2>>"$log") \
    || fail "torch cannot be imported"
if [ "$#" -eq 0 ]; then
    set -- tests/unit/models tests/unit/parallel tests/unit/device tests/unit/train tests/unit/v2pe tests/conversion \
        tests/parallel/test_parity.py tests/parallel/test_checkpoint_store.py
fi
status=0
"$environment/bin/python" -m pytest -q -p no:cacheprovider -n "${WORKERS:-2}" --dist loadfile "$@" >"$log" 2>&1 || status=$?
if [ "$status" -ne 0 ]; then tail -n 60 "$log" >&2; fi
printf '%s: %s\n' "$set_of_versions" "$(tail -n 1 "$log" | sed 's/^=* *//; s/ *=*$//')"
exit "$status"
