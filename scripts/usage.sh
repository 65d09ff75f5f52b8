#!/bin/sh
# What `--help` of a script prints: its head. To be sourced before anything is done:
#
#   . "$root/scripts/usage.sh"
#   if asked_for_help "$@"; then show_usage "$0"; exit 0; fi
#
# asked_for_help WORD ...   whether one of the words is -h or --help
# show_usage FILE ...       prints the comments the files begin with, without the shebang and lines for Slurm

asked_for_help() {
    for word in "$@"; do
        case "$word" in -h | --help) return 0 ;; esac
    done
    return 1
}

show_usage() {
    for file in "$@"; do
        sed -n -e '1d' -e '/^#SBATCH/d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$file"
    done
}

# Of a file that others read in: executed by itself it has nothing to do but to say so.
read_in_by_others() { # NAME OF THE FILE, "$@" of the script
    if [ "${0##*/}" != "$1" ]; then return 0; fi
    show_usage "$0"
    shift
    if asked_for_help "$@"; then exit 0; fi
    exit 2
}

read_in_by_others usage.sh "$@"
