#!/usr/bin/env bash
# Writes the King James Bible as plain text, a verse per line without its reference: scripts/kjv.sh FILE
# The text (1611, public domain) comes from Debian's package bible-kjv-text, unpacked by its program bible-kjv.
set -euo pipefail

out=$1
command -v bible >/dev/null || { echo "kjv: needs the program 'bible' of Debian's packages bible-kjv and bible-kjv-text" >&2; exit 1; }
bible -f 'gen1:1-rev22:21' </dev/null | sed -E 's/^[0-9]?[A-Za-z]+[0-9]+:[0-9]+ //' >"$out.part"

# 31102 verses, 4137850 bytes: any other text would train to other losses than those in the README.
read -r verses bytes < <(wc -lc <"$out.part")
if ((verses != 31102 || bytes != 4137850)); then
    echo "kjv: $verses verses in $bytes bytes; expected 31102 in 4137850" >&2
    exit 1
fi
mv "$out.part" "$out"
