# What run.sh and train.sh share; `here` is the bundle's folder.

# Binaries travel packed.
[ -d "$here/bin" ] || tar -xzf "$here/bin.tar.gz" -C "$here" || exit 1

# What arrived in parts, name.part-*, in this folder, its parent or a folder ../name, as one file: sets
# `joined` to its path, or to nothing. Returns 1 if the parts are there and do not make the file that was meant.
join() { # name
  local name=$1 folder want got
  joined=""
  for folder in "$here" "$here/.." "$here/../$name"; do
    set -- "$folder/$name".part-*
    [ -e "$1" ] || continue
    cat "$@" >"$here/tmp/$name"
    want=$(cat "$here/$name.sha256" 2>/dev/null)
    got=$(sha256sum <"$here/tmp/$name" | cut -d' ' -f1)
    if [ -n "$want" ] && [ "$want" != "$got" ]; then
      say "$name: the parts in $folder do not make the file that was meant ($got)"
      return 1
    fi
    say "$name: joined from $# parts"
    joined=$here/tmp/$name
    return 0
  done
  return 0
}

# cublasLt comes with PyTorch or with a toolkit. PyTorch's own is taken first: it is what baseline.py measures. A
# toolkit's stubs/ are for linking alone: every call of theirs fails.
find_cublas() { # python
  local found=""
  found=$("$1" - 2>/dev/null <<'END'
import re
try:
    import torch
    torch.cuda.init()
except Exception:
    pass
for line in open("/proc/self/maps"):
    if match := re.search(r"(/\S*libcublasLt\.so\S*)", line):
        print(match[1])
        break
END
  )
  if [ -z "$found" ]; then
    ldconfig -p | grep -q libcublasLt.so && { say "cublasLt: the system's"; return; }
    found=$(find /usr/local/cuda*/ /usr/lib "$("$1" -c 'import site; print(site.getsitepackages()[0])' 2>/dev/null)/nvidia" \
      -name 'libcublasLt.so*' -not -path '*/stubs/*' 2>/dev/null | sort -r | head -1)
  fi
  if [ -n "$found" ]; then
    # Under the name that programs ask for.
    ln -sf "$found" "$here/tmp/libcublasLt.so"
    export LD_LIBRARY_PATH="$here/tmp:$(dirname "$found"):${LD_LIBRARY_PATH:-}"
    say "cublasLt: $found"
  else
    say "cublasLt was not found: products are done by kernels of ours"
  fi
}

# The GPU in words, or nothing.
gpu_name() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -1
}
