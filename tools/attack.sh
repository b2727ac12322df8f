#!/usr/bin/env bash
# What takes too long for every run of the tests: hours of mutated inputs, a thousand kills, a soak, and the
# mutated inputs again under the address sanitizer. Needed: strace; on other systems than Linux the kills are left out.
#
#   FUZZ=600 KILLS=1000 SOAK=3600 ASAN=60 tools/attack.sh    seconds a target, kills, seconds, seconds a target
set -euo pipefail
cd "$(dirname "$0")/.."

tests() { ${CARGO:-cargo} test "$@"; }

echo "== mutated inputs"
PREFOLD_FUZZ_SECONDS=${FUZZ:-600} PREFOLD_SOAK_SECONDS=1 tests --test fuzz
echo "== kills"
PREFOLD_KILLS=${KILLS:-1000} tests --test program kill_sweep -- --nocapture
echo "== soak"
PREFOLD_SOAK_SECONDS=${SOAK:-3600} tests --test fuzz soak -- --nocapture

# A stable compiler has the sanitizer, but asks for this name to use it. Its runtime is for some platforms only.
target=$(rustc -vV | sed -n 's/^host: //p')
if compgen -G "$(rustc --print sysroot)/lib/rustlib/$target/lib/librustc*_rt.asan.a" > /dev/null; then
  echo "== mutated inputs under the address sanitizer"
  export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/asan
  export PREFOLD_FUZZ_SECONDS=${ASAN:-60} PREFOLD_SOAK_SECONDS=${ASAN:-60}
  tests --target "$target" --no-default-features --features tokenizer-json,formats --test fuzz
else
  echo "left out: no address sanitizer for $target"
fi
