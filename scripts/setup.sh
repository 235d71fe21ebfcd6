#!/usr/bin/env bash
# Installs what the build, the tests and the demonstration need and this machine lacks: Debian packages, as root or by
# sudo. Says what it installs; does nothing where nothing is missing. --ci: also what .ci/run checks with.
set -euo pipefail

packages=(cmake pkg-config libcairo2-dev libcjson-dev libdnnl-dev libcmocka-dev python3 python3-numpy g++ mandoc
          bible-kjv bible-kjv-text)

[[ ${1:-} == --ci ]] && packages+=(clang clang-format clang-tidy libclang-rt-dev libomp-dev doxygen python3-venv
                                   gcc-aarch64-linux-gnu libc6-dev-arm64-cross libcmocka-dev:arm64 libgomp1:arm64
                                   qemu-user-static)

# gcc brings OpenMP along; Debian's clang does not.
if ! echo 'int main(void) { return 0; }' | "${CC:-cc}" -fopenmp -x c -o /dev/null - 2>/dev/null; then
    packages+=(libomp-dev)
fi

if ! command -v apt-get dpkg-query >/dev/null; then
    echo "setup: no apt-get here; the build needs what Debian calls: ${packages[*]}" >&2
    exit 0
fi

native=$(dpkg --print-architecture)
missing=()
for package in "${packages[@]}"; do
    arch=$native
    [[ $package == *:* ]] && arch=${package#*:}
    dpkg-query -W -f '${db:Status-Status} ${Architecture}\n' "$package" 2>/dev/null |
        grep -xE "installed ($arch|all)" >/dev/null || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "setup: install as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
[[ ${1:-} == --ci ]] && "${as_root[@]}" dpkg --add-architecture arm64
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
