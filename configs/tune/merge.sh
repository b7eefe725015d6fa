#!/bin/sh
# Several tables of `quire tune`, all of one device, as one on standard output.
#   merge.sh TABLE...
# A product that two tables have is the first one's: its lines belong together.
set -eu
[ $# -gt 0 ] || { echo "merge.sh: which tables?" >&2; exit 2; }
awk '
    /^#/ { print; next }
    /^device / {
        if (device != "" && $0 != device) {
            print FILENAME ": " $0 ", but the tables before are of " device >"/dev/stderr"
            failed = 1
            exit 1
        }
        device = $0
        next
    }
    NF > 0 {
        if (device == "") {
            print FILENAME ": a table begins with its device" >"/dev/stderr"
            failed = 1
            exit 1
        }
        product = $1 " " $2 " " $3
        if (!(product in owner))
            owner[product] = FILENAME
        if (owner[product] == FILENAME)
            line[++count] = $0
    }
    END {
        if (failed)
            exit 1
        print device
        for (i = 1; i <= count; i++)
            print line[i]
    }' "$@"
