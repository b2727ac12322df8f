#!/usr/bin/env bash
# Checks the kernels on this machine's GPU, then measures them beside others, within ten minutes.
#
#   ./run.sh [folder for results]        (default ./results)
#
# Needed: an NVIDIA driver, bash, coreutils, tar, gzip; Python with PyTorch for the comparison. Parts of a model,
# model.gguf.part-*, here, in this folder's parent or in ../model.gguf, are joined. A step that fails
# does not stop the others. The exit code is 0 if all that could run passed, 1 if something failed, and 3 if
# there was no GPU, whatever else passed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/results}
mkdir -p "$out/logs" "$here/tmp"
out=$(cd "$out" && pwd)
cd "$here"
. ./parts.sh
python=$(command -v python3 || command -v python || true)
steps="$out/steps.jsonl"
: >"$steps"
failed=0
END=${PREFOLD_BUNDLE_SECONDS:-590}

say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }
: >"$out/summary.txt"

record() { # name, status, seconds
  printf '{"step": "%s", "status": "%s", "seconds": %s}\n' "$1" "$2" "$3" >>"$steps"
  say "$(printf '%-28s %-9s %4s s' "$1" "$2" "$3")"
  [ "$2" = failed ] || [ "$2" = "timed out" ] && failed=1
  return 0
}

# step NAME SECONDS COMMAND…: a skipped test says "skipped:" in its log and passes.
step() {
  local name=$1 limit=$2 begin=$SECONDS left code status
  shift 2
  left=$((END - SECONDS))
  if [ "$left" -lt 5 ]; then
    record "$name" "no time" 0
    return
  fi
  [ "$limit" -gt "$left" ] && limit=$left
  timeout -k 5 "$limit" "$@" >"$out/logs/$name.txt" 2>&1
  code=$?
  case $code in
    0) status=passed ;;
    124 | 137) status="timed out" ;;
    *) status=failed ;;
  esac
  record "$name" "$status" $((SECONDS - begin))
  case $status in
    passed) grep -h '^skipped:' "$out/logs/$name.txt" | sort -u | head -3 | sed 's/^/    /' | tee -a "$out/summary.txt" ;;
    *) grep -hE 'panicked|differ|error|Error' -A1 "$out/logs/$name.txt" | head -6 | sed 's/^/    /' | tee -a "$out/summary.txt" ;;
  esac
}

say "prefold $(cat VERSION 2>/dev/null)"
gpu=$(gpu_name)
if [ -n "$gpu" ]; then
  say "GPU: $gpu"
  # The kernels' own device: a missing one is a failure, and the CPU executes nothing.
  export PREFOLD_REQUIRE_CUDA=1
  rm -rf carried && mkdir carried && ln -s ../shared carried/shared && mkdir carried/tmp
  export PREFOLD_TEST_ROOT=$here/carried
else
  say "no GPU: kernels are executed by the CPU, and nothing is timed"
  export PREFOLD_TEST_ROOT=$here
fi

[ -n "$gpu" ] && find_cublas "$python"
join model.gguf || failed=1
model=$joined
[ -z "$model" ] && say "model: no parts of it here; tiny models and random weights serve"
export PREFOLD_MODEL=${model:-$here/tmp/none.gguf}

step kernels 90 bin/kernels kernels::
step kernels-bwd 60 bin/kernels kernels_bwd::
step lora 60 bin/kernels lora::
step models 90 bin/kernels kernel_models::
# The golden rows there are the CPU's alone; golden-rows below has them on the device.
step prune 150 bin/kernels prune:: --skip golden_rows
if [ -n "$gpu" ]; then
  [ -n "$model" ] && step golden-rows 120 bin/kernels device_parity:: --nocapture
else
  step planted 60 bin/kernels planted::
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
if [ -n "$gpu" ] && [ -n "$sanitizer" ]; then
  # One thread, and only what is small: every access is checked.
  for tool in memcheck racecheck; do
    step "$tool" 75 "$sanitizer" --tool "$tool" --error-exitcode 9 bin/kernels kernels:: --test-threads 1 \
      --skip real_vocabularies --skip missing_device
  done
  step memcheck-training 60 bash -c 'for tests in kernels_bwd:: lora::; do
    "$0" --tool memcheck --error-exitcode 9 bin/kernels "$tests" --test-threads 1 || exit; done' "$sanitizer"
elif [ -n "$gpu" ]; then
  say "compute-sanitizer was not found: not run"
fi

step bench 200 bash -c 'bin/bench_kernels --json >"$0"' "$out/kernels.jsonl"
if [ -n "$python" ]; then
  more=()
  [ -n "$model" ] && more=(--prefold bin/prefold --model "$model")
  step baseline 200 "$python" baseline.py kernels --ours "$out/kernels.jsonl" --out "$out/others.jsonl" \
    --table "$out/table.txt" --limit 150 "${more[@]}"
else
  say "no Python: nothing to compare with"
fi

{
  printf '{"gpu": "%s", "version": "%s", "seconds": %s, "failed": %s, "steps": [' \
    "$gpu" "$(cat VERSION 2>/dev/null)" "$SECONDS" "$([ $failed = 0 ] && echo false || echo true)"
  paste -sd, "$steps"
  printf ']}\n'
} >"$out/results.json"
say "results in $out: results.json, kernels.jsonl, others.jsonl, summary.txt, table.txt, logs/"
[ -s "$out/table.txt" ] && cat "$out/table.txt"
[ $failed = 0 ] || exit 1
[ -n "$gpu" ] || exit 3
