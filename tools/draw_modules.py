#!/usr/bin/env python3
"""Draws docs/img/architecture.svg from the table and the three ways in docs/concepts/architecture.md.

tools/draw_modules.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/concepts/architecture.md"
PICTURE = ROOT / "docs/img/architecture.svg"
WIDTH, ROW, BOX, GAP, LEFT, TOP = 860, 62, 124, 22, 70, 60
# Okabe and Ito's colours, which are told apart by everybody.
COLOURS = {"a prompt": "#0072b2", "a prefix": "#d55e00", "a training row": "#009e73"}


def modules(text):
    """Modules by layer, as the table has them."""
    layers = {}
    for layer, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.M):
        layers.setdefault(int(layer), []).append(name)
    return layers


def ways(text):
    """For each way the modules that it passes, in order, each once in a row."""
    found = {}
    for title, body in re.findall(r"^## The way of (.+)\n((?:(?!^## ).*\n?)*)", text, re.M):
        steps = re.findall(r"^\d+\. `src/(\w+)", body, re.M)
        found[title] = [step for at, step in enumerate(steps) if at == 0 or steps[at - 1] != step]
    return found


def main():
    text = PAGE.read_text()
    layers = modules(text)
    top = max(layers)
    centres, parts = {}, []
    for layer, names in layers.items():
        y = TOP + (top - layer) * ROW
        width = len(names) * BOX + (len(names) - 1) * GAP
        for at, name in enumerate(names):
            x = LEFT + (WIDTH - LEFT - width) / 2 + at * (BOX + GAP)
            centres[name] = (x + BOX / 2, y + 18)
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{BOX}" height="36" rx="6" class="box"/>'
                f'<text x="{x + BOX / 2:.0f}" y="{y + 23}" text-anchor="middle">{name}</text>'
            )
        parts.append(f'<text x="30" y="{y + 23}" class="layer">{layer}</text>')
    for at, (title, steps) in enumerate(ways(text).items()):
        colour, shift = COLOURS[title], (at - 1) * 9
        points = " ".join(f"{centres[s][0] + shift:.0f},{centres[s][1] + shift:.0f}" for s in steps)
        parts.insert(0, f'<polyline points="{points}" stroke="{colour}" class="way"/>')
        x = LEFT + at * 200
        parts.append(
            f'<line x1="{x}" y1="30" x2="{x + 28}" y2="30" stroke="{colour}" class="way"/>'
            f'<text x="{x + 36}" y="35">the way of {title}</text>'
        )
    height = TOP + (top + 1) * ROW
    style = (
        ".box{fill:#fff;stroke:#555;fill-opacity:.85}"
        "text{font:14px monospace;fill:#222}.layer{fill:#888}"
        ".way{fill:none;stroke-width:4;stroke-linejoin:round}"
    )
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Modules by layer">\n<style>{style}</style>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fafafa"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
