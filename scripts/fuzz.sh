#!/usr/bin/env bash
# Searches for inputs that break nsa: scripts/fuzz.sh [SECONDS] [TARGET...]
#
# Builds the targets of tests/fuzz (clang's libFuzzer, address and undefined sanitizers) and runs each, or those named,
# for SECONDS (30), two at a time: a line each, exit status 1 if one found a bug. A run starts from tests/fuzz/corpus and
# what earlier runs have left in build-fuzz/corpus. Inputs that break a target are kept in build-fuzz/found.
set -euo pipefail
cd "$(dirname "$0")/.."

export seconds=${1:-30} build=build-fuzz
shift $(($# > 0))

CC=clang CFLAGS='' cmake -S . -B $build -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNSA_FUZZ=ON -DNSA_EXAMPLES=OFF >/dev/null
cmake --build $build -j "$(nproc)" --target fuzz >/dev/null

targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cd tests/fuzz && printf '%s\n' fuzz_*.c | sed -E 's/^fuzz_(.*)\.c$/\1/')

run_target() {
    local target=$1 log=$build/found/$1.log
    local program=$build/fuzz/fuzz_$target
    mkdir -p "$build/corpus/$target" "$build/found"
    if "$program" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$build/found/$target-" "$build/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
        awk -v target="$target" '
            / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") edges = $(i + 1); else if ($i == "ft:") features = $(i + 1) }
            /^stat::number_of_executed_units:/ { runs = $2 }
            END { printf "%-12s %9d inputs, %5d edges, %6d features, nothing found\n", target, runs, edges, features }' "$log"
    else
        printf '%-12s BUG: see %s; the input is there and breaks %s FILE\n' "$target" "$log" "$program" >&2
        grep -m 5 -E 'ERROR|SUMMARY|runtime error|does not hold|Test unit written' "$log" >&2 || tail -n 5 "$log" >&2
        return 1
    fi
}
export -f run_target

printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'run_target {}' || { echo "fuzzing found bugs" >&2; exit 1; }
