"""Ten passages into 8 memory tokens each, and back: trains until they come back word for word.

`make overfit` runs it. Picks the first ten passages of 60 to 100 tokens of a JSONL file, trains an adapter
on them by `prefold train regen`, encodes each, asks for its text by `prefold generate` from BOS, and
compares: ROUGE-L (F over words, as the package rouge_score counts them). An unmodified llama.cpp server
(package xllamacpp, unless --no-server) gets the same prefixes as slots and is asked the same. It rounds
activations to 8 bits, so that a token which is hardly likelier than another may become that other: more
steps, small ones, until all texts from both reach the aim.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefold", default="target/release/prefold")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="../shared/data/corpus_dev.jsonl")
    parser.add_argument("--out", default="target/overfit", type=pathlib.Path)
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--memory-tokens", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--targets", default="all", help="q,v alone need twice the steps")
    parser.add_argument("--alpha", type=float, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--init", default="normal")
    parser.add_argument("--steps", type=int, default=200, help="before the first look")
    parser.add_argument("--more", type=int, default=20, help="steps from one look to the next, at a tenth of --lr")
    parser.add_argument("--looks", type=int, default=6, help="most looks")
    parser.add_argument("--aim", type=float, default=0.99)
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--server-model", help="the model in another type, for the server")
    return parser.parse_args()


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[1]} failed with {done.returncode}")
    return done.stdout


def passages(args):
    """Texts of 60 to 100 tokens, from the start of the file."""
    with open(args.data) as file:
        texts = [json.loads(line)["text"] for line in file]
    rows = args.out / "tokenize.jsonl"
    with open(rows, "w") as file:
        for i, text in enumerate(texts):
            json.dump({"name": i, "call": "tokenize", "args": {"text": text}}, file)
            file.write("\n")
    answers = run(args.prefold, "batch", "--model", args.model, rows).splitlines()
    lengths = [len(json.loads(line)["result"]["ids"]) for line in answers]
    return [t for t, n in zip(texts, lengths) if 60 <= n <= 100][: args.passages]


def rouge_l(want, got):
    want, got = (re.findall(r"[a-z0-9]+", text.lower()) for text in (want, got))
    row = [0] * (len(got) + 1)
    for a in want:
        last = row[:]
        for j, b in enumerate(got):
            row[j + 1] = last[j] + 1 if a == b else max(last[j + 1], row[j])
    return 2 * row[-1] / max(1, len(want) + len(got))


def by_server(args, texts):
    """The texts that an unmodified llama.cpp server gives for the prefixes."""
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/hosts"))
    from llama_cpp import SERVERS, Server

    model = os.path.realpath(args.server_model or args.model)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(model, *SERVERS["one slot, flash attention"], folder)
        template = os.path.join(folder, "template")
        server.complete([1], 1)
        server.slot_file("save", "template")
        made = []
        for i in range(len(texts)):
            slot = os.path.join(folder, str(i))
            told = run(args.prefold, "export", "--to", "llama.cpp", "--template", template,
                       args.out / f"{i}.safetensors", "-o", slot)
            tokens = json.loads(told)["tokens"]
            server.forget()
            server.slot_file("restore", str(i))
            asked = {"prompt": tokens + begin(args), "n_predict": 256, "temperature": 0,
                     "id_slot": server.slot, "cache_prompt": True}
            answer = server.post("/completion", asked)
            cached = answer["timings"]["cache_n"]
            if cached != len(tokens):
                sys.exit(f"the server took {cached} of {len(tokens)} tokens of a prefix from its cache")
            made.append(answer["content"])
        return made


def begin(args):
    """BOS, as `prefold generate` asks for a text."""
    told = run(args.prefold, "generate", "--model", args.model, "--prefix", args.out / "0.safetensors",
               "--json", "-n", 1)
    return json.loads(told)["prompt_ids"]


def report(what, texts, made):
    """Prints how like the passages they are; the least likeness."""
    scores = [rouge_l(want, got) for want, got in zip(texts, made)]
    exact = sum(want == got for want, got in zip(texts, made))
    print(f"{what}: ROUGE-L {min(scores):.3f} at least, {sum(scores) / len(scores):.4f} on average, "
          f"{exact} of {len(scores)} to the letter", flush=True)
    return min(scores)


def train(args, rows, out, steps, lr, *more):
    """Trains into the folder `out`; started again after a kill it resumes. Returns the seconds of its steps."""
    run(args.prefold, "train", "regen", "--model", args.model, "--data", rows, "--out", out,
        "--lr", lr, "--steps", steps, "--warmup", 10, "--dropout", 0, "--batch", args.batch,
        "--save-every", 20, "--activation-mb", 2048, "--resume", *more)
    with open(f"{out}.log.jsonl") as log:
        return sum(json.loads(line)["seconds"] for line in log)


def look(args, adapter, texts, what):
    """Whether the prefixes that an adapter makes give all texts back."""
    made = []
    for i, text in enumerate(texts):
        prefix, passage = args.out / f"{i}.safetensors", args.out / f"{i}.txt"
        passage.write_text(text)
        run(args.prefold, "encode", "--model", args.model, "--adapter", adapter, passage, "-o", prefix)
        made.append(run(args.prefold, "generate", "--model", args.model, "--prefix", prefix)[:-1])
    least = report(what, texts, made)
    if least >= args.aim and not args.no_server:
        least = report("  by the llama.cpp server", texts, by_server(args, texts))
    return least >= args.aim


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = passages(args)
    rows = args.out / "rows.jsonl"
    with open(rows, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    adapter, steps = args.out / "adapter", args.steps
    seconds = train(args, rows, adapter, steps, args.lr, "--targets", args.targets, "--alpha", args.alpha,
                    "--init", args.init, "--memory-tokens", args.memory_tokens)
    for _ in range(args.looks):
        if look(args, adapter, texts, f"{steps} steps, {seconds:.0f} s of training"):
            return
        steps += args.more
        before, adapter = adapter, args.out / f"adapter-{steps}"
        seconds += train(args, rows, adapter, args.more, args.lr / 10, "--adapter", before)
    sys.exit(f"not all of them reach {args.aim}")


if __name__ == "__main__":
    main()
