#!/bin/sh
# Makes the checkout's .venv and installs the package with its dependencies; does nothing when all is up to date.
#
#   sh scripts/setup_venv.sh [EXTRAS]        EXTRAS: comma-separated, e.g. test,dev,video (see setup.py)
#
# An existing .venv is kept and completed. Environment:
#   PYTHON          interpreter to build .venv with (default: the first of python3, python3.11, python3.12, python3.13,
#                   python3.10 that is 3.10 to 3.13)
#   TORCH_PIP_ARGS  more arguments for the installation of torch, e.g. an index that serves CPU-only builds
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
venv="$root/.venv"
stamp="$venv/.megatron-v2pe-installed"
wanted=$(printf '%s' "${1:-}" | tr -d ' ')

say() { printf 'setup: %s\n' "$*" >&2; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || { say "PYTHON=$PYTHON is not Python 3.10 to 3.13"; return 1; }
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.10; do
        if supported "$candidate"; then printf '%s' "$candidate"; return; fi
    done
    say "no Python 3.10 to 3.13 found; install one, or name it: PYTHON=/path/to/python3.11 sh $0"
    return 1
}

# What was installed is up to date if the files that decide it are unchanged and every wanted extra is in.
fingerprint() { cat "$root/setup.py" "$root/constraints.txt" | cksum | tr ' ' '-'; }

missing_extras() {
    installed=",$1,"
    printf '%s' "$wanted" | tr ',' '\n' | while IFS= read -r extra || [ -n "$extra" ]; do
        case "$installed" in *",$extra,"*) ;; *) printf '%s ' "$extra" ;; esac
    done
}

now=$(fingerprint)
had=""
if [ -f "$stamp" ]; then
    had=$(sed -n 2p "$stamp")
    if [ "$(sed -n 1p "$stamp")" = "$now" ] && [ -z "$(missing_extras "$had")" ]; then exit 0; fi
fi
extras=$(printf '%s,%s' "$had" "$wanted" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -s -d , -)

# Two commands started together must not install into the same .venv at once.
if command -v flock >/dev/null 2>&1 && [ -z "${MEGATRON_V2PE_SETUP_LOCKED:-}" ]; then
    lock="${TMPDIR:-/tmp}/megatron-v2pe-setup-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1).lock"
    MEGATRON_V2PE_SETUP_LOCKED=1 exec flock "$lock" sh "$root/scripts/setup_venv.sh" "$@"
fi

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    say "1/3 making .venv with $("$python" --version 2>&1)"
    "$python" -m venv "$venv" || { say "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
elif ! supported "$venv/bin/python"; then
    say ".venv holds $("$venv/bin/python" --version 2>&1); supported are 3.10 to 3.13. Move .venv away and start again"
    exit 1
else
    say "1/3 using the existing .venv"
fi

# pip draws its progress bars on a terminal; elsewhere it stays quiet and these lines tell what goes on.
quiet=-qq
if [ -t 2 ]; then quiet=""; fi
install() { "$venv/bin/python" -m pip install --disable-pip-version-check $quiet -c "$root/constraints.txt" "$@" >&2; }

torch=$(sed -n 's/^torch==/torch==/p' "$root/constraints.txt")
say "2/3 installing $torch (the largest part: a minute or more)"
# First and alone: a resolver that meets an open range elsewhere would fetch other, larger builds to look at them.
# shellcheck disable=SC2086  # TORCH_PIP_ARGS is a list of words
install ${TORCH_PIP_ARGS:-} "$torch" "setuptools>=77"

say "3/3 installing megatron-v2pe${extras:+ with extras $extras} (a minute or two)"
install --no-build-isolation --editable "$root${extras:+[$extras]}"

printf '%s\n%s\n' "$now" "$extras" >"$stamp"
say "done: $venv"
