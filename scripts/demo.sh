#!/usr/bin/env bash
# The demonstration: scripts/demo.sh [NSA] [FOLDER]
#
# Trains a small NSA model and its dense twin on the King James Bible (same text, seed and steps), shows their losses
# side by side, lets the NSA model write, asks it for facts hidden in long texts, draws what it attends to, and measures
# the attention alone by length. Four to six minutes on two cores. Nothing adapts to the machine: the losses reproduce.
set -euo pipefail
cd "$(dirname "$0")/.."

nsa=${1:-build/nsa}
out=${2:-demo}
text=$out/kjv.txt
started=$SECONDS

# Threads that wait without spinning lose little, and on a machine with other work they gain a lot: a thread that spins
# while another waits for a core holds both up.
export OMP_WAIT_POLICY=passive

say() {
    printf '\n== %s\n' "$*"
}

mkdir -p "$out"
rm -rf "$out/nsa" "$out/dense"
scripts/kjv.sh "$text"
"$nsa" info

for attention in nsa dense; do
    say "training: attention $attention"
    "$nsa" train --attention "$attention" --data "$text" --out "$out/$attention" --log "$out/$attention.jsonl" \
        --batch 4 --steps 500 --needle-share 0.8
done

say "losses on held-out text, nats per byte"
"$nsa" losses --log "$out/nsa.jsonl" "$out/dense.jsonl" --json "$out/losses.json" --out "$out/losses.png"

say "the NSA model goes on with 'In the beginning '"
"$nsa" generate --model "$out/nsa" --prompt 'In the beginning ' --tokens 400

say "needle test: a fact hidden in held-out text, asked for at its end"
"$nsa" eval --model "$out/nsa" --data "$text" --tokens 65536 --needle --trials 32 --out "$out/needle.png" >"$out/needle.json"

say "what the NSA model attends to: $out/map.png"
"$nsa" map --model "$out/nsa" --data "$text" --out "$out/map.png"

say "attention alone, by length"
"$nsa" bench --quick --lengths 2048,4096,8192,16384 --json --chart "$out/bench.png" >"$out/bench.json"

say "done in $((SECONDS - started)) s; results in $out/:"
ls "$out"
