#!/usr/bin/env bash
# nsa.h and the project's pages as HTML, by Doxygen: scripts/docs.sh FOLDER. What has no comment is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p "$1"
NSA_DOCS=$(realpath "$1")
NSA_VERSION=$(sed -n 's/^#define NSA_VERSION_[A-Z]* \([0-9]*\).*/\1/p' include/nsa.h | paste -sd .)
export NSA_DOCS NSA_VERSION
doxygen docs/Doxyfile

# Doxygen does not ask for those of fields and enumerators.
awk '/^(typedef )?(struct|enum) .*\{$/ { inside = 1; next }
     /^}/ { inside = 0 }
     inside && /^    [A-Za-z]/ && !/\/\*/ { print FILENAME ":" FNR ": no comment: " $0; bad = 1 }
     END { exit bad }' include/nsa.h
echo "$NSA_DOCS/index.html"
