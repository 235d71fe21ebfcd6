#!/usr/bin/env bash
# No unchecked arithmetic of sizes in the library and the command: scripts/check_sizes.sh BUILD_DIR (of clang, with
# compile_commands.json). Products and sums of an allocation are those of core/size.h; no product is made in 32 bits and
# then used in 64.
set -uo pipefail
cd "$(dirname "$0")/.."

status=0
if git grep -nE '\b([a-z_]*alloc|lm_alloc_zeroed)\([^;]* [*+] ' -- src lm cli bench; then
    echo "an allocation's size is computed here without core/size.h" >&2
    status=1
fi
git ls-files 'src/*.c' 'lm/*.c' 'cli/*.c' 'bench/*.c' | xargs -P 2 -n 8 clang-tidy -p "$1" --quiet --warnings-as-errors='*' \
    --checks='-*,bugprone-implicit-widening-of-multiplication-result' 2>/dev/null || status=1
exit $status
