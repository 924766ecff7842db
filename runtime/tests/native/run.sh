#!/usr/bin/env bash
# All native tests: with sanitizers, with hostile files, and for 64-bit Arm under emulation. Some five minutes.
#
#   run.sh BIN [FOLDER]
#
# BIN holds python (with vitquant and its runtime), cmake, ctest and ninja; builds go to FOLDER, build/native.
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$(cd "$1" && pwd):$PATH"
folder="$(realpath -m "${2:-build/native}")"
programs="$folder/programs"
export OMP_NUM_THREADS=1

# check NAME OPTION...: builds and runs the tests.
check() {
    local build="$folder/$1" start=$SECONDS
    echo "== native tests: $1"
    cmake -S runtime -B "$build" -G Ninja -DVITQUANT_TESTS=ON -DVITQUANT_WERROR=ON -DVITQUANT_EXAMPLE=OFF \
        -DVITQUANT_TEST_PROGRAMS="$programs" "${@:2}" >"$folder/$1.log"
    cmake --build "$build" -j2 >>"$folder/$1.log" || { cat "$folder/$1.log"; return 1; }
    echo "   built in $((SECONDS - start)) s"
    "${steady[@]}" ctest --test-dir "$build" -j2 --verbose --output-on-failure >>"$folder/$1.log" ||
        { cat "$folder/$1.log"; return 1; }
    sed -nE 's/^[0-9]+: (ok .*|.* checked.*|.* tried.*|.*DONE.*|.*Done .*)$/   \1/p' "$folder/$1.log"
    echo "   done in $((SECONDS - start)) s"
}

has() { command -v "$1" >/dev/null; }

# clang's libFuzzer, where its runtime is installed too.
has_libfuzzer() {
    has clang++ && echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' |
        clang++ -x c++ - -fsanitize=fuzzer,address -o "$folder/libfuzzer" 2>/dev/null
}

# Thread sanitizers may not find their place in memory among random addresses.
steady=()
if setarch -R true 2>/dev/null; then steady=(setarch -R); fi

mkdir -p "$folder"
PYTHONPATH=tests:runtime/tests python runtime/tests/native/make_programs.py "$programs"

optimized=(-DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1")
extra=()
if grep -qw avx512_vnni /proc/cpuinfo 2>/dev/null && ! grep -qw avx_vnni /proc/cpuinfo; then
    extra=(-DVITQUANT_AVXVNNI_BY_AVX512=ON)
fi

if has_libfuzzer; then
    memory=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DVITQUANT_SANITIZE=address,undefined,fuzzer-no-link)
else
    memory=(-DVITQUANT_SANITIZE=address,undefined)
fi
check memory "${optimized[@]}" "${extra[@]}" "${memory[@]}" -DVITQUANT_TEST_CASES=200 -DVITQUANT_TEST_SECONDS=30
# More than one thread is what matters here; kernels have none of their own.
check threads "${optimized[@]}" "${extra[@]}" -DVITQUANT_SANITIZE=thread -DVITQUANT_TEST_CASES=10 \
    -DVITQUANT_TEST_THREADS=3 -DVITQUANT_TEST_SECONDS=2
if has aarch64-linux-gnu-g++ && has qemu-aarch64; then
    check aarch64 -DCMAKE_TOOLCHAIN_FILE="$PWD/runtime/cmake/aarch64-linux-gnu.cmake" -DVITQUANT_TEST_CASES=100 \
        -DVITQUANT_TEST_THREADS=3 -DVITQUANT_TEST_SECONDS=5
else
    echo "== native tests: aarch64 LEFT OUT, as there is no aarch64-linux-gnu-g++ or no qemu-aarch64" \
        "(Debian: g++-aarch64-linux-gnu, qemu-user)"
fi
