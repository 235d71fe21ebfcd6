#!/usr/bin/env bash
# What cmake/hardening.cmake asks for is in these ELF files: check_hardening.sh FILE...
set -uo pipefail

status=0
require() { # FILE WHAT PATTERN TEXT
    grep -qE "$3" <<<"$4" || { echo "$1: $2 is missing" >&2; status=1; }
}

for file; do
    header=$(readelf -hlW "$file") dynamic=$(readelf -dW "$file") symbols=$(readelf --dyn-syms -W "$file")
    require "$file" "position independence" 'Type: +DYN' "$header"
    require "$file" "a stack that cannot run" 'GNU_STACK .* RW +0x' "$header"
    require "$file" "read-only relocations" 'GNU_RELRO' "$header"
    require "$file" "binding at start" 'FLAGS.*NOW' "$dynamic"
    require "$file" "stack protection" '__stack_chk_fail' "$symbols"
    require "$file" "checked libc calls" '__[a-z]+_chk' "$symbols"
    if grep -E 'LOAD .* (RWE|WE)' <<<"$header"; then
        echo "$file: has memory that can be written and run" >&2
        status=1
    fi
done
exit $status
