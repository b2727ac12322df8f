#!/usr/bin/env python3
"""Draws the charts of docs/results.md from the raw records.

    plot_results.py benches/results/raw docs/img

Of each kind (quality, speed, prefix) the newest record is drawn, named DATE-KIND.csv; lines that begin with `#` say how it
was made. Needs matplotlib. The same records give the same bytes.
"""

import csv
import glob
import os
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

matplotlib.rcParams.update({
    "svg.hashsalt": "prefold",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
})
COLOURS = {
    "llmlingua": "#9a9a9a",
    "longllmlingua": "#6f6f6f",
    "reference": "#7aa6d8",
    "prefold": "#1f5fa8",
    "default": "#1f5fa8",
}


def newest(folder, kind):
    """The rows of the newest record of a kind, and its date."""
    paths = sorted(glob.glob(os.path.join(folder, "*-{0}.csv".format(kind))))
    if not paths:
        raise SystemExit("plot_results: no *-{0}.csv in {1}".format(kind, folder))
    with open(paths[-1]) as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return rows, os.path.basename(paths[-1])[:10]


def save(figure, folder, name):
    path = os.path.join(folder, name + ".svg")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    print(path)


def quality(folder, out):
    """nll of the gold answer over the tokens that the target LLM reads."""
    rows, date = newest(folder, "quality")
    figure, axes = plt.subplots(figsize=(5.4, 3.2))
    lines = {"none": ("no context", "#b04a4a", ":"), "full": ("full prompt", "#333333", "--"),
             "gold": ("gold documents alone", "#4a8a4a", ":")}
    for way in sorted({row["way"] for row in rows} - set(lines)):
        points = sorted((float(r["tokens"]), float(r["nll"])) for r in rows if r["way"] == way)
        axes.plot(*zip(*points), marker="o", label=way, color=COLOURS.get(way))
    for row in rows:
        if row["way"] in lines:
            text, colour, style = lines[row["way"]]
            axes.axhline(float(row["nll"]), color=colour, linestyle=style, linewidth=1)
            axes.annotate("{0}, {1} tokens".format(text, row["tokens"]), (1.0, float(row["nll"])),
                          xycoords=("axes fraction", "data"), ha="right", va="bottom", color=colour, fontsize=8)
    axes.set_xlim(0, None)
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("nll of the gold answer (lower is better)")
    axes.set_title("48 questions about ten documents, " + date, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.62))
    save(figure, out, "quality")


def speed(folder, out):
    """Seconds per prompt, side by side."""
    rows, date = newest(folder, "speed")
    figure, axes = plt.subplots(figsize=(5.4, 2.0))
    names = ["llmlingua", "reference", "default"]
    labels = {"llmlingua": "llmlingua 0.2.2", "reference": "prefold --reference", "default": "prefold"}
    for at, name in enumerate(names):
        heights = [len(names) * 0.25 / 2 - at * 0.25 + place for place in range(len(rows))]
        values = [float(row[name]) for row in rows]
        bars = axes.barh(heights, values, height=0.23, label=labels[name], color=COLOURS[name])
        axes.bar_label(bars, fmt="%.2f s", padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), ["{case}\n{tokens} tokens".format(**row) for row in rows])
    axes.set_xlabel("seconds, two CPU cores")
    axes.set_title("Time to compress, " + date, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, out, "speed")


def prefix(folder, out):
    """Time to the first token over the length of the text."""
    rows, date = newest(folder, "prefix")
    figure, axes = plt.subplots(figsize=(5.4, 2.6))
    tokens = [int(row["tokens"]) for row in rows]
    for column, label, colour in [
        ("prompt_ms", "text as a prompt", "#9a9a9a"),
        ("full_ms", "full prefix", "#7aa6d8"),
        ("half_ms", "prefix pruned to half", "#4c82bf"),
        ("soft_ms", "4 memory tokens", "#1f5fa8"),
    ]:
        axes.plot(tokens, [float(row[column]) for row in rows], marker="o", label=label, color=colour)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of the text")
    axes.set_ylabel("ms to the first token")
    axes.set_title("prefold generate after a prefix, " + date, fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
    save(figure, out, "prefix")


def main(arguments):
    if len(arguments) != 2:
        print(__doc__.strip().splitlines()[2].strip(), file=sys.stderr)
        return 2
    for draw in (quality, speed, prefix):
        draw(*arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
