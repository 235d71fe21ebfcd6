#!/usr/bin/env bash
# Every symbol that the library exports starts with nsa_, and every function of nsa.h is exported. It imports nothing that
# prints, ends the program, opens files or starts threads; of what allocates, malloc, which tests/faults watches.
set -euo pipefail
exported=$(nm -D --defined-only "$1" | awk '{print $3}' | sort)
foreign=$(grep -v '^nsa_' <<<"$exported" || true)
if [ -n "$foreign" ]; then
    printf 'exported, but not nsa_...:\n%s\n' "$foreign" >&2
    exit 1
fi
declared=$(gcc -E -P "$(dirname "$0")/../include/nsa.h" | grep -oE '\bnsa_[a-z0-9_]+\(' | tr -d '(' | sort -u | grep -vx nsa_packed)
missing=$(comm -23 <(echo "$declared") <(echo "$exported"))
if [ -n "$missing" ]; then
    printf 'declared in nsa.h, but not exported:\n%s\n' "$missing" >&2
    exit 1
fi
promised_not='(__)?(v?f?printf|vd?printf|puts|fputs|putchar|putc|fputc|fwrite|write|perror)(_chk)?|f?open(64|at)?|(_)?exit|abort|raise|kill'
promised_not+='|calloc|realloc|aligned_alloc|posix_memalign|memalign|mmap(64)?|strn?dup|v?asprintf|pthread_create|(un)?setenv'
broken=$(nm -D --undefined-only "$1" | awk '{ sub(/@.*/, "", $2); print $2 }' | grep -xE "$promised_not" || true)
if [ -n "$broken" ]; then
    printf 'imported, against the promise of nsa.h:\n%s\n' "$broken" >&2
    exit 1
fi
echo "$(wc -l <<<"$exported") symbols, all nsa_..."
