#!/bin/sh
# Everything a change must pass: ruff, import linter, type checker, documentation, pytest. Sets up .venv by itself.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]      e.g. bash scripts/test.sh tests/unit -k positions
#
# Without arguments all tests run, two at a time: they wait for processes to start as much as they compute.
# Runs every check even if an earlier one failed; the exit status says whether all passed.
set -u

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
cd "$root" || exit 1
sh scripts/setup_venv.sh test,dev,docs,video || exit 1
bin="$root/.venv/bin"
# One thread per process: tests start several processes on few cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

failed=""
report=""
begin=$(date +%s)

run() {
    name=$1
    shift
    started=$(date +%s)
    echo "== $name"
    verdict="ok    "
    if ! "$@"; then
        verdict="FAILED"
        failed="$failed $name;"
    fi
    report="$report$verdict  $(($(date +%s) - started)) s  $name
"
}

run "ruff check" "$bin/ruff" check .
run "ruff format" "$bin/ruff" format --check --quiet .
run "import linter" "$bin/lint-imports" --no-cache
run "pyright" "$bin/pyright" --pythonpath "$bin/python"
site=$(mktemp -d)
trap 'rm -rf -- "$site"' EXIT
# A link, heading or name that is not there fails. The variable silences an announcement of the theme's.
run "documentation" env NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" build --strict --site-dir "$site"
if [ "$#" -gt 0 ]; then
    run "pytest" "$bin/python" -m pytest -q --durations=15 "$@"
else
    run "pytest of one process" "$bin/python" -m pytest -q --durations=10 -n 2 --dist worksteal tests/unit tests/conversion \
        tests/launch tests/breakage
    run "pytest of several processes" "$bin/python" -m pytest -q --durations=15 -n 2 --dist worksteal tests/parallel \
        tests/end_to_end
fi

echo "== $(($(date +%s) - begin)) s in all"
printf '%s' "$report"
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
