#!/usr/bin/env bash
# Makes docs/img/compress.png, the picture of the README, from a page of the program's own.
#
#   tools/picture.sh [PREFOLD]
#
# Needed: chromium, and Python with pillow in .venv-docs or on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
program="${1:-target/release/prefold}"
python=python3
[ -x .venv-docs/bin/python ] && python=.venv-docs/bin/python
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

"$program" compress --quiet --device cpu --rate 45% --reorder-context original \
  --question "Why is Tokyo Tower painted white and orange?" --html "$folder/page.html" examples/towers/*.txt > /dev/null
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.5 \
  --window-size=900,880 --screenshot="$folder/page.png" "file://$folder/page.html"
"$python" - "$folder/page.png" docs/img/compress.png <<'PY'
import sys
from PIL import Image

picture = Image.open(sys.argv[1]).convert("RGB").quantize(64)
picture.save(sys.argv[2], optimize=True)
PY
ls -l docs/img/compress.png
