#!/bin/sh
# Numbered steps with their times, for scripts of several parts. To be sourced, after these are set:
#
#   root        the checkout
#   steps_of    what the script is called in its messages
#   total       how many steps it has
#   out         the folder it writes
#   after       what to say after a failure beside it; may be empty
#
# step TITLE      says that a step begins
# finished        says how long it took
# in_all          prints the seconds since this file was sourced
#
# When the script ends with another status than 0, the step that failed is named.

. "${root:-$(dirname -- "$0")/..}/scripts/usage.sh"
read_in_by_others steps.sh "$@"

number=0
began=$(date +%s)
since=$began

step() {
    number=$((number + 1))
    since=$(date +%s)
    printf '\n[%d/%d] %s\n' "$number" "$total" "$*"
}

finished() {
    printf '      %d s (%d s in all)\n' $(($(date +%s) - since)) "$(in_all)"
}

in_all() {
    printf '%d' $(($(date +%s) - began))
}

_failed() {
    status=$?
    if [ "$status" -ne 0 ]; then
        printf '%s: step %d of %d failed (status %d); what it wrote is in %s%s\n' \
            "$steps_of" "$number" "$total" "$status" "$out" "${after:+; $after}" >&2
    fi
    exit "$status"
}
trap _failed EXIT
