"""Encoders beside what runs them today: LLMLingua-2 beside llmlingua 0.2.2, and vectors of texts beside PyTorch and llama.cpp.

    make bench-encoders
    make bench-encoders ARGS="--only vectors"

Each side runs in a process and an environment of its own, with as many threads. LLMLingua-2's classifier has the shape of
BERT-base multilingual and random weights, which take as long as trained ones; its tokenizer is that of the tests, which compare
the texts. The vectors are those of all-MiniLM-L6-v2; PyTorch sorts by length and pads, as sentence-transformers does. llama.cpp is
an unmodified server inside Python (package xllamacpp), asked for all texts at once; its GGUF of F32 is made by `minilm_gguf.py`.
Nothing else may run meanwhile: llama.cpp's threads wait for each other in a loop, and share a busy core badly.
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
# Tokens that llama.cpp reads at a time. Each attends to all of them and is masked afterwards: 256 take as long, 2048 a third
# longer, 4096 more than half as long again.
LLAMA_BATCH = 512


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


def their_texts(args):
    """LLMLingua-2 by llmlingua."""
    import torch

    torch.set_num_threads(args.threads)
    count_words()
    from llmlingua import PromptCompressor

    return compress(PromptCompressor(str(args.classifier), device_map="cpu", use_llmlingua2=True))


def our_texts(args):
    """LLMLingua-2 by prefold."""
    from prefold.llmlingua import PromptCompressor

    return compress(PromptCompressor(str(args.classifier), device_map="cpu", use_llmlingua2=True, threads=args.threads))


def compress(lingua):
    _, _, documents = passages()
    seconds, _ = best(lambda: lingua.compress_prompt(documents, rate=0.5, use_context_level_filter=False))
    return {"seconds": seconds}


def torch_vectors(args):
    """Vectors by PyTorch."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(args.threads)
    question, cut, _ = passages()
    texts = [question, *cut]
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
    model = AutoModel.from_pretrained(args.encoder)
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)

    def embed():
        vectors, tokens = [None] * len(texts), 0
        with torch.no_grad():
            for at in range(0, len(texts), BATCH):
                some = order[at : at + BATCH]
                batch = tokenizer(
                    [texts[text] for text in some], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
                )
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                tokens += int(mask.sum())
                mean = (states * mask).sum(1) / mask.sum(1)
                for text, vector in zip(some, torch.nn.functional.normalize(mean, dim=1)):
                    vectors[text] = vector
        return vectors, tokens

    seconds, (vectors, tokens) = best(embed)
    return {"seconds": seconds, "tokens": tokens, "vectors": [vector.tolist() for vector in vectors]}


def llama_vectors(args):
    """Vectors by llama.cpp."""
    import xllamacpp

    question, cut, _ = passages()
    params = xllamacpp.CommonParams()
    params.model.path = str(args.gguf)
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_batch = params.n_ubatch = LLAMA_BATCH
    # Texts of one batch, each in a slot of its own.
    params.n_parallel = BATCH
    params.n_ctx = BATCH * LLAMA_BATCH
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cache_ram_mib = 0
    params.verbosity = 1
    params.warmup = False
    params.port = 0
    server = xllamacpp.Server(params)

    seconds, made = best(lambda: server.handle_embeddings({"input": [question, *cut]}))
    rows = sorted(made["data"], key=lambda row: row["index"])
    return {"seconds": seconds, "tokens": made["usage"]["prompt_tokens"], "vectors": [row["embedding"] for row in rows]}


def our_vectors(args):
    """Vectors by prefold, which gives what they are for: the cosine of each with the question's."""
    import prefold

    question, cut, _ = passages()
    reader = prefold.Compressor(args.encoder, device="cpu", threads=args.threads)
    seconds, ranked = best(lambda: reader.rank(cut, question))
    return {"seconds": seconds, "cosines": [score for _, score in sorted(ranked)]}


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b))


def furthest(a, b):
    return max(abs(x - y) for x, y in zip(a, b))


def peak():
    """Largest resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


SIDES = {
    "their-texts": their_texts,
    "our-texts": our_texts,
    "torch-vectors": torch_vectors,
    "llama-vectors": llama_vectors,
    "our-vectors": our_vectors,
}


def show_texts(run):
    theirs, mine = run("their-texts"), run("our-texts")
    print(f"{'LLMLingua-2, 3 documents':28}{'llmlingua':>12}{'prefold':>12}{'ratio':>8}")
    print(f"{'seconds':28}{theirs['seconds']:12.2f}{mine['seconds']:12.2f}{theirs['seconds'] / mine['seconds']:8.2f}")
    print(f"{'peak memory, MB':28}{theirs['peak_mb']:12.0f}{mine['peak_mb']:12.0f}\n")


def show_vectors(run):
    torch, llama, mine = sides = run("torch-vectors"), run("llama-vectors"), run("our-vectors")
    # Of other tokens there would be other vectors.
    if torch["tokens"] != llama["tokens"]:
        raise SystemExit(f"PyTorch read {torch['tokens']} tokens, llama.cpp {llama['tokens']}")
    for side in (torch, llama):
        question, *texts = side["vectors"]
        side["cosines"] = [cosine(question, text) for text in texts]
    name = f"{torch['tokens']} tokens to vectors"
    print(f"{name:28}{'PyTorch':>12}{'llama.cpp':>12}{'prefold':>12}")
    rows = [("seconds", "seconds", ".3f"), ("peak memory, MB", "peak_mb", ".0f")]
    for name, key, form in rows:
        print(f"{name:28}" + "".join(f"{side[key]:12{form}}" for side in sides))
    print(f"{'tokens per second':28}" + "".join(f"{torch['tokens'] / side['seconds']:12.0f}" for side in sides))
    print(f"{'prefold is faster, times':28}" + "".join(f"{side['seconds'] / mine['seconds']:12.2f}" for side in sides[:2]))
    print("Beside PyTorch:")
    least = min(cosine(a, b) for a, b in zip(torch["vectors"], llama["vectors"]))
    print(f"{'least cosine of vectors':28}{'':12}{least:12.6f}")
    apart = [furthest(torch["cosines"], side["cosines"]) for side in (llama, mine)]
    print(f"{'cosines with the question':28}{'':12}" + "".join(f"{each:12.6f}" for each in apart) + "  apart at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", type=pathlib.Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["texts", "vectors"], help="LLMLingua-2 alone, or all-MiniLM-L6-v2 alone")
    parser.add_argument("--reference", default=ROOT / ".venv-reference", type=pathlib.Path, help="environment of llmlingua")
    parser.add_argument("--llama", default=ROOT / ".venv/llama.cpp", type=pathlib.Path, help="folder of the package xllamacpp")
    parser.add_argument("--ours", default=ROOT / ".venv-python", type=pathlib.Path, help="environment of prefold")
    parser.add_argument("--side", choices=["make", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--classifier", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--gguf", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "make":
        return make_classifier(args.classifier)
    if args.side:
        row = SIDES[args.side](args)
        return print(json.dumps({**row, "peak_mb": peak()}))
    theirs, mine = args.reference / "bin" / "python", args.ours / "bin" / "python"
    with tempfile.TemporaryDirectory() as scratch:
        classifier, gguf = pathlib.Path(scratch) / "bert-base-multilingual-cased", pathlib.Path(scratch) / "minilm.gguf"

        def run(side):
            python = {"llama-vectors": sys.executable, "our-texts": mine, "our-vectors": mine}.get(side, theirs)
            command = [python, __file__, "--side", side, "--classifier", classifier, "--gguf", gguf]
            command += ["--encoder", args.encoder, "--threads", str(args.threads)]
            # A folder of packages, not an environment.
            more = {"PYTHONPATH": str(args.llama)} if side == "llama-vectors" else {}
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **more})
            return json.loads(done.stdout.splitlines()[-1]) if side != "make" else None

        if args.only != "vectors":
            run("make")
            show_texts(run)
        if args.only != "texts":
            subprocess.run([theirs, ROOT / "benches/minilm_gguf.py", args.encoder, gguf], check=True)
            show_vectors(run)


if __name__ == "__main__":
    sys.exit(main())
