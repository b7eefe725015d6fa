#!/bin/sh
# `make -Bn V=1` on standard input to a compile_commands.json on standard output.
exec awk -v folder="$(pwd)" '
    BEGIN { print "["; separator = "" }
    / -c [^ ]+\.c -o / {
        file = $0
        sub(/.* -c /, "", file); sub(/ -o .*/, "", file)
        command = $0
        sub(/^[ \t]+/, "", command)
        gsub(/\\/, "\\\\", command); gsub(/"/, "\\\"", command)
        if (seen[file]++) next
        printf "%s{\"directory\": \"%s\", \"file\": \"%s\", \"command\": \"%s\"}", separator, folder, file, command
        separator = ",\n"
    }
    END { print "\n]" }'
