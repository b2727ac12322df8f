#!/usr/bin/env python3
"""Bytes, encode time and time to first token with and without a prefix, as a table.

    prefix.py PREFOLD MODEL ADAPTER [RUNS [TOKENS...]]

Checks first that a prefilled prefix gives the same answer as the whole prompt. The model is loaded anew in each run and that is
not counted; every number is the median of RUNS (5) runs. Compare on an idle machine.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

TOKENS = (100, 250, 500, 1000, 2000)
QUESTION = list(range(1000, 1012))


def main(program, model, adapter, runs="5", *lengths):
    def run(*arguments):
        return subprocess.run([program, *arguments, "-m", model], check=True, capture_output=True, text=True)

    def made(path, *arguments):
        seconds = [float(re.search(r"([\d.]+) s$", run(*arguments, "-o", path).stderr)[1]) for _ in range(int(runs))]
        return statistics.median(seconds)

    def first(prompt, *more):
        asked = ["generate", "--prompt-ids", json.dumps(prompt), "-n", "8", "--json", "--ignore-eos", *more]
        answers = [json.loads(run(*asked).stdout) for _ in range(int(runs))]
        return answers[0]["ids"], 1000 * statistics.median(answer["first_token_seconds"] for answer in answers)

    print("| tokens | full cache, f16 | pruned to half | soft prefix | encode | first token: whole prompt | full cache | half | soft |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        full, half, soft = (os.path.join(folder, name) for name in ("full", "half", "soft"))
        for tokens in map(int, lengths or TOKENS):
            ids = [(i * 7919 + 31) % 40000 for i in range(tokens)]
            text = ["--ids", json.dumps(ids)]
            made(full, "prefill", *text, "--dtype", "f32")
            want, whole_ms = first(ids + QUESTION)
            got, _ = first(QUESTION, "--prefix", full)
            assert got == want, "the prefix's answer is another"
            short = [*text, "--dtype", "f16"]
            made(full, "prefill", *short)
            made(half, "prefill", "--keep", "0.5", *short)
            seconds = made(soft, "encode", "--adapter", adapter, *short)
            times = [first(QUESTION, "--prefix", path)[1] for path in (full, half, soft)]
            sizes = [os.path.getsize(path) for path in (full, half, soft)]
            cells = [str(tokens)] + ["{0:,} kB".format(size // 1000) for size in sizes] + ["{0:.2f} s".format(seconds)]
            print("| " + " | ".join(cells + ["{0:.0f} ms".format(ms) for ms in [whole_ms] + times]) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
