#!/bin/sh
# Fails if one of the files given is larger than 2 MB. Used by pre-commit.
#
#   sh scripts/check_file_sizes.sh FILE ...      e.g. sh scripts/check_file_sizes.sh README.md
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/usage.sh"
if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
limit=2097152
status=0
for file in "$@"; do
    [ -f "$file" ] || continue
    size=$(wc -c <"$file")
    if [ "$size" -gt "$limit" ]; then
        echo "$file: $size bytes, the limit is $limit" >&2
        status=1
    fi
done
exit "$status"
