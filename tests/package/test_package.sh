#!/usr/bin/env bash
# Installs a build, moves it, and uses it from programs outside of the tree: test_package.sh BUILD_DIR
set -uo pipefail # so no grep -q at the end of a pipe: what writes to it would fail

build=$(realpath "$1")
here=$(realpath "$(dirname "$0")")
source=$(realpath "$here/../..")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

prefix=$scratch/moved
lib=$prefix/$(sed -n 's/^CMAKE_INSTALL_LIBDIR:PATH=//p' "$build/CMakeCache.txt")
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
export PKG_CONFIG_PATH=$lib/pkgconfig
unset LD_LIBRARY_PATH CFLAGS CXXFLAGS LDFLAGS

# The compiler of the build and its C++: the archive wants its OpenMP runtime.
cc=$(sed -n 's/^CMAKE_C_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
case $cc in
*clang*) cpp=${cc/clang/clang++} ;;
*) cpp=g++ ;;
esac
strict=(-Wall -Wextra -Wpedantic -Wconversion -Werror)
c=("$cc" -std=c11 "${strict[@]}")
cxx=("$cpp" -std=c++17 "${strict[@]}")
outside=$scratch/outside
mkdir "$outside"
cp "$here/program.c" "$here/CMakeLists.txt" "$outside"

# ---- What is tested: a function each -------------------------------------------------------------------------------

installs_and_moves() {
    cmake --install "$build" --prefix "$scratch/first" >/dev/null && mv "$scratch/first" "$prefix" &&
        ! grep -rI "$scratch/first\|$build\|$source" "$prefix" # no path of the build in any text
}

has_soname() {
    local soname="libnsa.so.${version%.*}" # 0.1 of 0.1.0
    [[ $version != 0.* ]] && soname="libnsa.so.${version%%.*}"
    readelf -d "$lib/libnsa.so" | grep "SONAME.*\[$soname\]" && [[ -f $lib/libnsa.so.$version && -L $lib/$soname ]]
}

exports_its_functions_only() {
    "$source/scripts/check_symbols.sh" "$lib/libnsa.so"
}

command_finds_its_library() {
    [[ $("$prefix/bin/nsa" --version) == "nsa $version" ]] &&
        readelf -d "$prefix/bin/nsa" | grep 'RUNPATH.*\[$ORIGIN/[^:]*\]' &&
        ldd "$prefix/bin/nsa" | grep "libnsa.* => $prefix/bin/\.\./"
}

command_tells_its_commit() { # built from a git checkout, which a release is not
    local commit=
    [[ -e $source/.git ]] && commit=', commit [0-9a-f]{7,}'
    grep -E "^version   $version$commit$" <<<"$("$prefix/bin/nsa" info)"
}

runs() {
    [[ $("$@") == "libnsa $version" ]]
}

pkg_config_in_c() {
    [[ $(pkg-config --modversion nsa) == "$version" ]] &&
        "${c[@]}" outside/program.c $(pkg-config --cflags --libs nsa) -Wl,-rpath,"$lib" -o c && runs ./c
}

pkg_config_in_cpp() {
    "${cxx[@]}" -x c++ outside/program.c -x none $(pkg-config --cflags --libs nsa) -Wl,-rpath,"$lib" -o cpp && runs ./cpp
}

pkg_config_static() {
    local libs
    libs=$(pkg-config --libs --static nsa) # -L... -lnsa -fopenmp -lm
    "${c[@]}" outside/program.c $(pkg-config --cflags nsa) ${libs/-lnsa/-l:libnsa.a} -o static && runs ./static &&
        ! ldd ./static | grep libnsa
}

plain_compiler() {
    "${c[@]}" -I"$prefix/include" outside/program.c -L"$lib" -lnsa -o plain && LD_LIBRARY_PATH=$lib runs ./plain
}

# cmake_project NAME LANGUAGE COMPILER OPTION...
cmake_project() {
    local name=$1 language=$2 compiler=$3
    shift 3
    cmake -S "$outside" -B "$name" -DLANGUAGE="$language" -DCMAKE_${language}_COMPILER="$compiler" "$@" >/dev/null &&
        cmake --build "$name" --target with_nsa with_nsa_static >/dev/null
}

cmake_package_in() {
    cmake_project "cmake-$1" "$1" "$2" -DCMAKE_PREFIX_PATH="$prefix" &&
        runs "cmake-$1/with_nsa" && runs "cmake-$1/with_nsa_static"
}

cmake_package_in_c() {
    cmake_package_in C "$cc"
}

cmake_package_in_cpp() {
    cmake_package_in CXX "$cpp"
}

cmake_refuses_another_version() {
    sed -i.kept 's/find_package(nsa [0-9.]*/find_package(nsa 99/' outside/CMakeLists.txt
    ! cmake_project other C "$cc" -DCMAKE_PREFIX_PATH="$prefix" 2>other.txt && mv outside/CMakeLists.txt.kept outside/CMakeLists.txt &&
        grep -q "version: $version" other.txt
}

cmake_subdirectory() {
    cmake_project sub C "$cc" -DNSA_SOURCE="$source" -DCMAKE_BUILD_TYPE=Debug && runs sub/with_nsa && runs sub/with_nsa_static
}

examples_run_installed() {
    local example
    for example in "$prefix"/share/doc/libnsa/examples/*.c; do
        "${c[@]}" "$example" $(pkg-config --cflags --libs nsa) -Wl,-rpath,"$lib" -o example && ./example >/dev/null || return 1
    done
}

manual_is_clean() {
    local page=$prefix/share/man/man1/nsa.1
    mandoc -T lint -W style "$page" && "$here/check_manual.py" "$prefix/bin/nsa" "$page"
}

is_hardened() {
    "$here/check_hardening.sh" "$lib/libnsa.so" "$prefix/bin/nsa"
}

# ---- Running them --------------------------------------------------------------------------------------------------

passed=0
failed=0
for name in installs_and_moves has_soname exports_its_functions_only command_finds_its_library command_tells_its_commit \
    pkg_config_in_c pkg_config_in_cpp pkg_config_static plain_compiler \
    cmake_package_in_c cmake_package_in_cpp cmake_refuses_another_version cmake_subdirectory \
    examples_run_installed manual_is_clean is_hardened; do
    if "$name" >log.txt 2>&1; then
        echo "[       OK ] $name"
        passed=$((passed + 1))
    else
        cat log.txt
        echo "[  FAILED  ] $name"
        failed=$((failed + 1))
    fi
done
echo "[  PASSED  ] $passed test(s)."
((failed == 0)) || echo "[  FAILED  ] $failed test(s)."
((failed == 0))
