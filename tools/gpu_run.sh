#!/usr/bin/env bash
# Measures the kernels on this machine's GPU beside others and checks them, within ten minutes.
#
#   ./run.sh [folder for results]        (default ./results)
#
# What only a GPU can tell comes first: ceilings, the kernels that matter (each compared before it is timed), one
# prompt, a profile; then tests, large shapes, others, sanitizers. Each step's result is written as it ends, so that
# a run that is cut off has all up to there.
#
# Needed: an NVIDIA driver, bash, coreutils, tar, gzip; Python with PyTorch for the comparison. Parts of a model,
# model.gguf.part-*, here, in this folder's parent or in ../model.gguf, are joined. A step that fails
# does not stop the others. The exit code is 0 if all that could run passed, 1 if something failed, and 3 if
# no GPU was found, whatever else passed.
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
  results
}

# All steps up to now, in one file.
results() {
  {
    printf '{"gpu": "%s", "version": "%s", "seconds": %s, "failed": %s, "steps": [' \
      "$gpu" "$(cat VERSION 2>/dev/null)" "$SECONDS" "$([ $failed = 0 ] && echo false || echo true)"
    paste -sd, "$steps"
    printf ']}\n'
  } >"$out/results.json.tmp"
  mv "$out/results.json.tmp" "$out/results.json"
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

# A bench's lines go to their file one by one.
bench() { # name, seconds, options of the bench…
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" \
    bash -c 'out=$0; bin/bench_kernels --json "$@" >>"$out"' "$out/kernels.jsonl" "$@"
}

more=()
[ -n "$model" ] && more=(--prefold bin/prefold --model "$model")
: >"$out/kernels.jsonl"
if [ -n "$gpu" ]; then
  step self-check 20 bin/kernels kernels::a_device_that_computes_wrongly_is_found_out --exact
  # The first case measures what the device does at best.
  bench bench-first 60 --only nll,attention,topk --models smollm2
  if [ -n "$python" ]; then
    [ -n "$model" ] && step one-prompt 60 "$python" baseline.py prompt "${more[@]}" --out "$out/prompt.jsonl"
    "$python" baseline.py kernels --ours "$out/kernels.jsonl" --no-others 2>/dev/null | tee -a "$out/summary.txt"
  fi
  ncu=$(command -v ncu || ls /usr/local/cuda*/bin/ncu 2>/dev/null | head -1)
  if [ -n "$ncu" ]; then
    for kernel in nll_bf16 attention_bf16_64 nll_merge; do
      step "ncu-$kernel" 40 "$ncu" --set full --clock-control none --kernel-name "$kernel" --launch-count 1 --kill yes \
        --page details --log-file "$out/logs/profile-$kernel.txt" \
        bin/bench_kernels --only nll,attention --models smollm2 --rows 2000
    done
  else
    say "ncu was not found: no profile"
  fi
fi

step kernels 90 bin/kernels kernels::
step kernels-bwd 60 bin/kernels kernels_bwd::
step lora 60 bin/kernels lora::
step models 90 bin/kernels kernel_models::
# The golden rows there are the CPU's alone; golden-rows below has them on the device.
step prune 150 bin/kernels prune:: --skip golden_rows
if [ -n "$gpu" ]; then
  [ -n "$model" ] && step golden-rows 120 bin/kernels device_parity:: --nocapture
  bench bench-others 60 --only linear,layer,lora,nll_bwd,attention_bwd,layer_bwd --models smollm2
  bench bench-large 120 --models llama3-8b
else
  step planted 60 bin/kernels planted::
  bench bench 200
fi
if [ -n "$python" ]; then
  step baseline 200 "$python" baseline.py kernels --ours "$out/kernels.jsonl" --out "$out/others.jsonl" \
    --table "$out/table.txt" --limit 150 "${more[@]}"
else
  say "no Python: nothing to compare with"
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

results
say "results in $out: results.json, kernels.jsonl, prompt.jsonl, others.jsonl, summary.txt, table.txt, logs/"
[ -s "$out/table.txt" ] && cat "$out/table.txt"
[ $failed = 0 ] || exit 1
[ -n "$gpu" ] || exit 3
