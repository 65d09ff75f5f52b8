#!/usr/bin/env bash
# Everything a change must pass: ruff, import linter, type checker, pytest. Sets up .venv by itself.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]      e.g. bash scripts/test.sh tests/unit -k positions
#
# Runs every check even if an earlier one failed; the exit status says whether all passed.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
bash scripts/setup_venv.sh test,dev,video || exit 1
bin="$root/.venv/bin"
# One thread per process: tests start several processes on few cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

failed=()
report=()

run() {
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    if "$@"; then report+=("ok      $name, $((SECONDS - started)) s"); else
        report+=("FAILED  $name, $((SECONDS - started)) s")
        failed+=("$name")
    fi
}

run "ruff check" "$bin/ruff" check .
run "ruff format" "$bin/ruff" format --check --quiet .
run "import linter" "$bin/lint-imports" --no-cache
run "pyright" "$bin/pyright" --pythonpath "$bin/python"
run "pytest" "$bin/python" -m pytest -q --durations=15 "$@"

echo "== summary, $SECONDS s in all"
printf '%s\n' "${report[@]}"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
