"""prefold beside Microsoft's llmlingua in one run, on the same model and the same cores.

    make bench-reference            (a virtual environment of its own: torch, transformers, llmlingua)
    .venv-reference/bin/python benches/reference.py --cases CASES.jsonl --only licence_long,long_full
    .venv-reference/bin/python benches/reference.py --random 200 --seed 1

With --random nothing is timed: both get that many random calls; those whose texts differ are printed, and
it fails if there are any.

A case is a row as `prefold batch` takes it; without --cases the documents under examples/ serve. The
two take turns, each case is run --repeat times, and the median counts. Loading, and laying out the
weights, is not timed. Counts of cl100k_base would need a download, so the reference's own counter is
replaced by a count of words; that changes its reported figures and nothing else.
"""

import argparse
import collections
import copy
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from random_calls import random_calls

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Words:
    """Stands in for tiktoken's encoding."""

    def encode(self, text):
        return text.split()


def as_folder(model):
    """The GGUF as the Hugging Face folder that the reference wants: dequantised to f32, made once."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / ".cache" / "reference" / model.stem
    if not folder.is_dir():
        shutil.rmtree(folder.with_suffix(".tmp"), ignore_errors=True)
        making = folder.with_suffix(".tmp")
        source = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
        # A GGUF without an output matrix uses that of the embedding. transformers takes the two for
        # separate ones, and would draw the missing one at random.
        config = AutoConfig.from_pretrained(**source)
        config.tie_word_embeddings = all(t.name != "output.weight" for t in GGUFReader(model).tensors)
        AutoModelForCausalLM.from_pretrained(**source, config=config).float().save_pretrained(making)
        AutoTokenizer.from_pretrained(**source).save_pretrained(making)
        making.rename(folder)
    return folder


def bring_punkt():
    """NLTK would download its English parameters; they are those that prefold embeds."""
    import nltk

    folder = ROOT / ".cache/reference/nltk"
    english = folder / "tokenizers/punkt_tab/english"
    shutil.copytree(ROOT / "src/text/punkt_english", english, dirs_exist_ok=True)
    nltk.data.path.insert(0, str(folder))


def break_ties():
    """Among texts with equal scores NumPy's order depends on the processor; here, as in prefold, the first is first."""
    import numpy
    import rank_bm25

    class Scores(rank_bm25.BM25Okapi):
        def get_scores(self, query):
            return super().get_scores(query) - 1e-12 * numpy.arange(self.corpus_size)

    rank_bm25.BM25Okapi = Scores
    argsort = numpy.argsort
    numpy.argsort = lambda values: argsort(values, kind="stable")


def load_reference(model, threads):
    import tiktoken
    import torch
    from tokenizers import pre_tokenizers, processors

    tiktoken.encoding_for_model = lambda name: Words()
    torch.set_num_threads(threads)
    from llmlingua import PromptCompressor

    bring_punkt()
    break_ties()
    compressor = PromptCompressor(str(as_folder(model)), device_map="cpu")
    # Later releases leave spaces as they are; this one must be told to.
    compressor.tokenizer.clean_up_tokenization_spaces = False
    # Loaded from a GGUF, transformers' tokenizer puts a BOS in front and does not split digits;
    # SmolLM2's own does neither.
    backend = compressor.tokenizer.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return compressor


class Prefold:
    """One process, one model, a case a line."""

    def __init__(self, program, model):
        self.process = subprocess.Popen(
            [program, "batch", "-", "--model", model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        # Weights are laid out when they are first needed, for each of the modes in a form of its own.
        text = "A few words, and more of them, so that there is something to drop. " * 4
        for budget in ("reference", "exact"):
            self.call("compress_prompt", {"context": text, "rate": 0.5, "budget": budget})

    def answer(self, call, args):
        self.process.stdin.write(json.dumps({"name": "x", "call": call, "args": args}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def call(self, call, args):
        row = self.answer(call, args)
        if "error" in row:
            sys.exit(f"prefold: {row['error']}")
        return row["result"]


def same_model(reference, program, model):
    """Fails unless both give the same log-probabilities: otherwise nothing after this means anything."""
    import torch

    path = ROOT / "examples/peps/question.txt"
    scored = subprocess.run([program, "score", "--json", "--model", model, str(path)],
                            stdout=subprocess.PIPE, check=True)
    ours = json.loads(scored.stdout)["per_token"]
    ids = reference.tokenizer(path.read_text(), return_tensors="pt").input_ids
    if ids[0].tolist() != [token["id"] for token in ours]:
        sys.exit("the tokenizers differ: nothing was measured")
    with torch.no_grad():
        logits = reference.model(ids).logits[0, :-1].float()
    theirs = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    apart = max(abs(a["nll"] - b) for a, b in zip(ours[1:], theirs.tolist()))
    if apart > 1e-2:
        sys.exit(f"the log-probabilities differ by up to {apart:.3f} nats: nothing was measured")
    print(f"log-probabilities of {len(theirs)} tokens differ by at most {apart:.1e} nats", flush=True)


def example_cases():
    folder = ROOT / "examples" / "peps"
    docs = [path.read_text() for path in sorted(folder.glob("pep-*.txt"))]
    question = (folder / "question.txt").read_text().strip()
    preset = {
        "rank_method": "longllmlingua", "condition_in_question": "after_condition",
        "reorder_context": "sort", "dynamic_context_compression_ratio": 0.3,
        "condition_compare": True, "question": question,
    }
    return [
        ("plain, rate 0.33", "compress_prompt", {"context": docs[:3], "rate": 0.33}),
        ("preset, rate 0.5", "compress_prompt", {"context": docs[:3], "rate": 0.5, **preset}),
    ]


def by_default(arguments):
    """The same texts to the same number of tokens by prefold's default mode, which has options of its own."""
    known = ("context", "instruction", "question", "rate", "target_token")
    return {name: arguments[name] for name in known if name in arguments} | {"budget": "exact"}


def compare_random(reference, ours, count, seed):
    """Whether all texts are alike. Where the reference raises, there is nothing to compare."""
    alike, raised = 0, collections.Counter()
    for done, (name, call, arguments) in enumerate(random_calls(count, seed)):
        if sys.stderr.isatty():
            print(f"\r{done} of {count}", end="\r", file=sys.stderr, flush=True)
        try:
            # It changes lists that it is given.
            want = getattr(reference, call)(**copy.deepcopy(arguments))["compressed_prompt"]
        except Exception as error:
            raised[f"{type(error).__name__}: {str(error)[:80]}"] += 1
            continue
        row = ours.answer(call, arguments)
        got = row["result"]["compressed_prompt"] if "result" in row else None
        if got == want:
            alike += 1
        else:
            print(json.dumps({"name": name, "call": call, "args": arguments, "llmlingua": want,
                              "prefold": row.get("error", got)}, ensure_ascii=False), flush=True)
    print(f"{alike} of {count - raised.total()} random calls give the same text; in {raised.total()} more llmlingua raises")
    for message, times in raised.most_common():
        print(f"    {times} times {message}")
    return alike + raised.total() == count


def timed(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path,
                        default=ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf")
    parser.add_argument("--prefold", default=str(ROOT / "target/release/prefold"))
    parser.add_argument("--cases", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--random", type=int, metavar="N", help="compare the texts of N random calls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    cases = example_cases()
    if args.cases:
        rows = [json.loads(line) for line in args.cases.open()]
        wanted = [name for name in args.only.split(",") if name]
        cases = [(r["name"], r["call"], r["args"]) for r in rows
                 if r["call"] == "compress_prompt" and (not wanted or r["name"] in wanted)]
    reference = load_reference(args.model.resolve(), args.threads)
    same_model(reference, args.prefold, str(args.model))
    ours = Prefold(args.prefold, str(args.model))
    if args.random:
        sys.exit(0 if compare_random(reference, ours, args.random, args.seed) else 1)
    print(f"{'case':<20} {'llmlingua':>10} {'parity':>9} {'ratio':>7} {'default':>9} {'ratio':>7}  same text")
    for name, call, arguments in cases:
        theirs, parity, exact = [], [], []
        for _ in range(args.repeat):
            seconds, want = timed(lambda: reference.compress_prompt(**arguments))
            theirs.append(seconds)
            seconds, got = timed(lambda: ours.call(call, arguments))
            parity.append(seconds)
            seconds, _ = timed(lambda: ours.call(call, by_default(arguments)))
            exact.append(seconds)
        same = want["compressed_prompt"] == got["compressed_prompt"]
        t, p, e = map(statistics.median, (theirs, parity, exact))
        print(f"{name:<20} {t:>8.2f} s {p:>7.2f} s {t / p:>6.1f}x {e:>7.2f} s {t / e:>6.1f}x  {'yes' if same else 'NO'}",
              flush=True)


if __name__ == "__main__":
    main()
