#!/usr/bin/env bash
# Makes docs/img/notebook.png: the cell of docs/notebooks/compress.ipynb that shows a result, as stored.
#
#   tools/notebook_picture.sh
#
# Needed: chromium, nbconvert in .venv-frameworks, and Python with pillow in .venv-docs or on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -x .venv-docs/bin/python ] && python=.venv-docs/bin/python
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

.venv-frameworks/bin/python -m nbconvert --to html --output-dir "$folder" docs/notebooks/compress.ipynb
# All cells are hidden but the result's and the text above it.
cat >> "$folder/compress.html" <<'HTML'
<style>
.jp-Cell { display: none !important }
[id="cell-id=compress-text"] { display: block !important }
[id="cell-id=compress"] { display: flex !important; flex-direction: column }
</style>
HTML
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.25 \
  --window-size=960,700 --screenshot="$folder/page.png" "file://$folder/compress.html"
"$python" - "$folder/page.png" docs/img/notebook.png <<'PY'
import sys
from PIL import Image, ImageChops

picture = Image.open(sys.argv[1]).convert("RGB")
left, top, right, bottom = ImageChops.difference(
    picture, Image.new("RGB", picture.size, "white")
).getbbox()
edge = 14
picture = picture.crop((left - edge, top - edge, right + edge, bottom + edge))
picture.quantize(48, dither=Image.Dither.NONE).save(sys.argv[2], optimize=True)
PY
ls -l docs/img/notebook.png
