#!/usr/bin/env bash
# Runs the kernels at small shapes under the address and the thread sanitizer, in programs of their own,
# and checks that both find the mistakes that are planted for them. Needed: g++.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/sanitize}
mkdir -p "$out"
emulator=crates/cuda-emulator/cpp
options=(-std=c++17 -g -Wall -Wextra -I "$emulator" -x c++)

build() { # sanitizer
  local program="$out/$1"
  # The runtime switches stacks under the sanitizer's feet and tells it so: it is not watched itself.
  local runtime=(-fsanitize="$1")
  [ "$1" = thread ] && runtime=(-DWITH_TSAN)
  ${CXX:-g++} "${options[@]}" -O1 "${runtime[@]}" -c "$emulator/runtime.cpp" -o "$program-runtime.o"
  ${CXX:-g++} "${options[@]}" -O1 -fsanitize="$1" -c kernels/host/sanitize.cpp -o "$program.o"
  ${CXX:-g++} -fsanitize="$1" "$program.o" "$program-runtime.o" -o "$program"
}

expect() { # sanitizer, what it says, kernel, which mistake
  local said
  if said=$("$out/$1" "$3" "$4" 2>&1); then
    echo "the $1 sanitizer missed mistake $4 in $3" >&2
    exit 1
  fi
  if ! grep -q "$2" <<<"$said"; then
    echo "the $1 sanitizer said of mistake $4 in $3:" >&2
    echo "$said" >&2
    exit 1
  fi
  echo "  mistake $4 in $3: $2"
}

export ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=1
build address
build thread
for sanitizer in address thread; do
  echo "$sanitizer:"
  for kernel in planted_reverse planted_histogram planted_pipeline planted_shuffle; do
    "$out/$sanitizer" "$kernel" 0
  done
  # On a line of its own: inside of echo's argument a failure would go unheard.
  said=$("$out/$sanitizer")
  echo "  $said"
done
expect address heap-buffer-overflow planted_reverse 4
expect thread "data race" planted_reverse 1
expect thread "data race" planted_histogram 2
expect thread "data race" planted_pipeline 7
