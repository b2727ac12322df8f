#!/usr/bin/env bash
# Trains an adapter on this machine's GPU for so many seconds, and measures what it keeps.
#
#   ./train.sh [seconds] [folder for results] [options of `prefold train regen`…]    (default 540, ./trained)
#
# The folder holds the adapter, whole at any time: started again with it, here or elsewhere, training continues
# from the last checkpoint. Beside it the log, its curves, what it keeps, and a step beside PyTorch's. The model
# and the rows arrive in parts, as for run.sh: model.gguf.part-* and corpus.jsonl[.xz|.zst].part-*. Needed
# besides: an NVIDIA driver, bash, coreutils, tar, gzip; for the comparison Python with PyTorch and transformers.
# PREFOLD_DEVICE=cpu trains without a GPU. The exit code is 0 if all that could run passed, 3 without a GPU.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
limit=${1:-540}
out=${2:-$here/trained}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out" "$here/tmp"
out=$(cd "$out" && pwd)
cd "$here"
say() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }
. ./parts.sh
python=$(command -v python3 || command -v python || true)

say "prefold $(cat VERSION 2>/dev/null)"
device=${PREFOLD_DEVICE:-cuda}
precision=f32
if [ "$device" = cuda ]; then
  gpu=$(gpu_name)
  if [ -z "$gpu" ]; then
    say "no GPU; PREFOLD_DEVICE=cpu trains without one"
    exit 3
  fi
  say "GPU: $gpu"
  find_cublas "$python"
  precision=bf16
fi

join model.gguf || exit 1
model=$joined
rows=""
for name in corpus.jsonl.xz corpus.jsonl.zst corpus.jsonl; do
  join "$name" || exit 1
  [ -n "$joined" ] && rows=$joined && break
done
if [ -z "$model" ] || [ -z "$rows" ]; then
  say "needed here or in the folder above: parts of model.gguf and of corpus.jsonl[.xz|.zst]"
  exit 1
fi
# What the caller does not give.
options=("$@")
default() { # option value
  for given in ${options[@]+"${options[@]}"}; do [ "${given%%=*}" = "$1" ] && return; done
  options+=("$@")
}
[ -e dev.jsonl ] && default --eval dev.jsonl && default --eval-every 1000
default --steps 1000000
default --batch 32
default --save-every 500
default --activation-mb 16000

# What measures afterwards takes a sixth of the time, and at most 90 s.
after=$((limit / 6 < 90 ? limit / 6 : 90))
begin=$SECONDS
# An interrupt saves what there is, be it of the time box or of the keyboard (hence --foreground); 130 is what it returns then.
timeout --foreground -s INT -k 60 $((limit - after)) bin/prefold train regen --model "$model" --device "$device" \
  --precision "$precision" --data "$rows" --log "$out/log.jsonl" --out "$out/adapter" --resume \
  "${options[@]}" 2>&1 | tee "$out/train.txt"
code=${PIPESTATUS[0]}
case $code in
  0 | 124 | 130) say "trained for $((SECONDS - begin)) s: $(tail -1 "$out/log.jsonl")" ;;
  *) say "training failed ($code): $(tail -1 "$out/train.txt")"; exit 1 ;;
esac
failed=0
bin/prefold plot "$out/log.jsonl" -o "$out/loss.svg" || failed=1

left() { echo $((limit - (SECONDS - begin) > 10 ? limit - (SECONDS - begin) : 10)); }
if [ -e dev.jsonl ]; then
  timeout --foreground "$(left)" bin/prefold eval regen --model "$model" --device "$device" --data dev.jsonl --limit 16 \
    --adapter "$out/adapter" --json "$out/regen.json" | tee -a "$out/summary.txt" ||
    { failed=1; say "prefold eval regen failed, or had no time left"; }
fi
if [ -n "$python" ] && "$python" -c 'import torch, transformers' 2>/dev/null; then
  # Both read one folder; the adapter in it changes nothing about the time.
  rm -rf tmp/merged
  bin/prefold merge --model "$model" --adapter "$out/adapter" -o tmp/merged &&
    timeout --foreground "$(left)" "$python" baseline.py train --program bin/bench_train --device "$device" --model tmp/merged \
      --folder tmp/merged --batch 32 --tokens 480 --memory 16 --steps 5 --out "$out/beside_pytorch.json" |
    tee -a "$out/summary.txt" || { failed=1; say "the comparison with PyTorch failed, or had no time left"; }
else
  say "no PyTorch with transformers: a step is not compared"
fi
exit $failed
