#!/bin/sh
# Fails if one of the files given is larger than 2 MB. Used by pre-commit.
set -eu
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
