"""Encoders beside the frameworks that run them today: LLMLingua-2 beside llmlingua 0.2.2, and vectors of texts beside PyTorch.

    make bench-encoders

Each side runs in a process and an environment of its own, with as many threads. LLMLingua-2's classifier has the shape of
BERT-base multilingual and random weights, which take as long as trained ones; its tokenizer is that of the tests, which compare
the texts. The vectors are those of all-MiniLM-L6-v2; PyTorch sorts by length and pads, as sentence-transformers does.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/data/golden/encoders/mbert-tokens"
REPEATS = 3
BATCH = 32
# As all-MiniLM-L6-v2's own settings say.
LONGEST = 256


def passages():
    """The passages of the demo's documents, and a question."""
    folder = ROOT / "examples" / "peps"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("pep-*.txt"))]
    question = (folder / "question.txt").read_text(encoding="utf-8").strip()
    cut = [text[at : at + 600] for text in texts for at in range(0, len(text) - 600, 600)]
    return question, cut[:200], [text[:4000] for text in texts[:3]]


def best(work):
    """The least of a few times in seconds, after one that warms up."""
    made = work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), made


def count_words():
    """A counter for llmlingua in place of tiktoken's, which would download its vocabulary: one token is one word."""
    import tiktoken

    class Counter:
        def encode(self, text, **_):
            return text.split()

    tiktoken.encoding_for_model = lambda name: Counter()


def make_classifier(folder):
    """A classifier of BERT-base's shape with random weights, and the tokenizer of the tests."""
    import torch
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(1)
    config = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    config.update(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
    config.update(initializer_range=0.05)
    model = BertForTokenClassification(BertConfig(**config))
    model.save_pretrained(folder)
    for path in GOLDEN.glob("*token*.json"):
        shutil.copy(path, folder)


def frameworks(classifier, encoder, threads):
    """llmlingua and PyTorch."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(threads)
    count_words()
    from llmlingua import PromptCompressor

    question, cut, documents = passages()
    lingua = PromptCompressor(str(classifier), device_map="cpu", use_llmlingua2=True)
    compress, _ = best(lambda: lingua.compress_prompt(documents, rate=0.5, use_context_level_filter=False))
    model = AutoModel.from_pretrained(encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def embed():
        texts = sorted([question, *cut], key=len, reverse=True)
        vectors, tokens = [], 0
        with torch.no_grad():
            for at in range(0, len(texts), BATCH):
                batch = tokenizer(texts[at : at + BATCH], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                tokens += int(mask.sum())
                mean = (states * mask).sum(1) / mask.sum(1)
                vectors.append(torch.nn.functional.normalize(mean, dim=1))
        return tokens

    seconds, tokens = best(embed)
    return {"compress": compress, "embed": seconds, "tokens": tokens}


def ours(classifier, encoder, threads):
    """prefold."""
    import prefold
    from prefold.llmlingua import PromptCompressor

    question, cut, documents = passages()
    lingua = PromptCompressor(str(classifier), device_map="cpu", use_llmlingua2=True, threads=threads)
    compress, _ = best(lambda: lingua.compress_prompt(documents, rate=0.5, use_context_level_filter=False))
    reader = prefold.Compressor(encoder, device="cpu", threads=threads)
    seconds, _ = best(lambda: reader.rank(cut, question))
    return {"compress": compress, "embed": seconds}


def peak():
    """Largest resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", type=pathlib.Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--reference", default=ROOT / ".venv-reference", type=pathlib.Path, help="environment of llmlingua")
    parser.add_argument("--ours", default=ROOT / ".venv-python", type=pathlib.Path, help="environment of prefold")
    parser.add_argument("--side", choices=["frameworks", "ours", "make"], help=argparse.SUPPRESS)
    parser.add_argument("--classifier", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "make":
        return make_classifier(args.classifier)
    if args.side:
        sides = {"frameworks": frameworks, "ours": ours}
        row = sides[args.side](args.classifier, args.encoder, args.threads)
        return print(json.dumps({**row, "peak_mb": peak()}))
    with tempfile.TemporaryDirectory() as scratch:
        classifier = pathlib.Path(scratch) / "bert-base-multilingual-cased"

        def run(side, environment):
            command = [environment / "bin" / "python", __file__, "--side", side, "--classifier", classifier]
            command += ["--encoder", args.encoder, "--threads", str(args.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            return json.loads(done.stdout.splitlines()[-1]) if side != "make" else None

        run("make", args.reference)
        theirs, mine = run("frameworks", args.reference), run("ours", args.ours)
    print(f"{'':28}{'frameworks':>12}{'prefold':>10}{'ratio':>8}")
    for name, key in [("LLMLingua-2, 3 documents", "compress"), (f"{theirs['tokens']} tokens to vectors", "embed")]:
        a, b = theirs[key], mine[key]
        print(f"{name:28}{a:10.2f} s{b:8.2f} s{a / b:8.2f}")
    print(f"{'peak memory':28}{theirs['peak_mb']:9.0f} MB{mine['peak_mb']:7.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
