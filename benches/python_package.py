"""The Python package beside llmlingua 0.2.2: import, load, first result, ten prompts; seconds and memory.

    make bench-python

Each side runs in a process and an environment of its own, on the same model and as many threads: llmlingua,
prefold.llmlingua with the same results, and prefold's own budget. The texts of the first two are compared.
Counts of cl100k_base would need a download in llmlingua, so its counter is replaced by a count of words.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIDES = ("llmlingua", "prefold.llmlingua", "exact")


def prompts():
    """Ten prompts of three passages and a question."""
    folder = ROOT / "examples" / "peps"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("pep-*.txt"))]
    question = (folder / "question.txt").read_text(encoding="utf-8").strip()
    passages = [text[start : start + 1200] for text in texts for start in (0, 1200)]
    return [(passages[i : i + 3], question) for i in range(10)]


def peak():
    """Largest resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def side(name, model, threads):
    """Measures one side in this process."""
    start = last = time.perf_counter()
    seconds = {}

    def took(what):
        nonlocal last
        now = time.perf_counter()
        seconds[what] = now - last
        last = now

    if name == "llmlingua":
        import torch
        from llmlingua import PromptCompressor

        took("import")
        from reference import load_reference

        # The model's folder is made before, and what is replaced is not what takes the time.
        work = load_reference(model, threads)
        del torch, PromptCompressor
    else:
        from prefold.llmlingua import PromptCompressor

        took("import")
        budget = "exact" if name == "exact" else "reference"
        work = PromptCompressor(str(model), device_map="cpu", budget=budget, threads=threads)
        work.compressor.open()
    took("load")
    options = {} if name == "exact" else {"rank_method": "longllmlingua"}
    texts = []
    for number, (contexts, question) in enumerate(prompts()):
        made = work.compress_prompt(contexts, question=question, rate=0.5, **options)
        texts.append(made["compressed_prompt"])
        if number == 0:
            took("first")
    took("nine more")
    seconds["in all"] = last - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak(), "texts": texts}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path,
                        default=ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf")
    parser.add_argument("--ours", default=str(ROOT / ".venv-frameworks/bin/python"))
    parser.add_argument("--reference", default=str(ROOT / ".venv-reference/bin/python"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args.side, args.model, args.threads)
    made = {}
    # Once before, so that the folder is there and files are in the page cache.
    for name in (SIDES[0], *SIDES):
        python = args.reference if name == "llmlingua" else args.ours
        command = [python, __file__, "--side", name, "--model", str(args.model),
                   "--threads", str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        made[name] = json.loads(done.stdout.splitlines()[-1])
    same = sum(a == b for a, b in zip(made[SIDES[0]]["texts"], made[SIDES[1]]["texts"]))
    print(f"{'':18}" + "".join(f"{name:>20}" for name in SIDES))
    for what in made["exact"]["seconds"]:
        print(f"{what + ', s':18}" + "".join(f"{made[n]['seconds'][what]:20.2f}" for n in SIDES))
    print(f"{'peak, MB':18}" + "".join(f"{made[n]['peak_mb']:20.0f}" for n in SIDES))
    print(f"{same} of 10 texts of the first two are the same")
    return 0 if same == 10 else 1


if __name__ == "__main__":
    sys.exit(main())
