#!/usr/bin/env python3
"""Facts hidden in long texts: how often is the answer still there after compression to 3,000 tokens?

    python3 benches/needles.py target/release/prefold --model MODEL [--tokens 4000,16000,64000] [--prompts 30]

Kinds, after RULER (arXiv 2404.06654) and as agents meet them; all text is made by a seed out of what comes with
Python itself, so that any machine with the same Python has the same prompts:

  needle   one sentence with a number, in the prose of Python's documentation
  keys     the same among eight such sentences for other names
  json     one pair of a JSON object of UUIDs
  log      one line of a log about a user whom no other line names
  code     a constant of one module among the standard library's sources
  chat     a fact said once in a long conversation, as messages

Ways: prefold by words alone (`--effort fast`) and as it comes, Okapi BM25 in place of the ranker, and the
last 3,000 tokens, which is what a window keeps. No target LLM is asked: an answer that is gone cannot be read.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ADJECTIVES = "amber brisk calm dusty early faint grand hollow icy jolly keen lofty mellow narrow oval pale".split()
NOUNS = "anchor bridge candle donkey engine falcon garden harbor island jacket kettle ladder market needle orchard".split()
KINDS = ["needle", "keys", "json", "log", "code", "chat"]
# A guess at cl100k tokens; the tokens that are reported are counted by the program.
BYTES_A_TOKEN = {"needle": 4.3, "keys": 4.3, "json": 2.0, "log": 2.9, "code": 4.2, "chat": 4.2}


def prose():
    """Paragraphs of the documentation that `help()` shows."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    return [p for p in paragraphs if len(p) > 80 and ">>>" not in p and "::" not in p]


def modules():
    """Sources of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in folder.glob("*.py") if 4_000 < path.stat().st_size < 60_000)


def fill(rng, pieces, size):
    """Pieces in another order, up to so many bytes."""
    pieces = rng.sample(pieces, len(pieces))
    out, used = [], 0
    while used < size:
        piece = pieces[len(out) % len(pieces)]
        out.append(piece)
        used += len(piece) + 2
    return out


def needles(rng, tokens, others):
    names = rng.sample([f"{a} {n}" for a in ADJECTIVES for n in NOUNS], others + 1)
    sentences = [f"The special magic number for the {name} is {rng.randrange(10**6, 10**7)}." for name in names]
    paragraphs = fill(rng, prose(), tokens * BYTES_A_TOKEN["needle"])
    for sentence in sentences:
        at = rng.randrange(len(paragraphs))
        paragraphs[at] += " " + sentence
    answer = re.search(r"\d+", sentences[0])[0]
    return ["\n\n".join(paragraphs)], f"What is the special magic number for the {names[0]}?", answer


def uuid(rng):
    digits = "%032x" % rng.getrandbits(128)
    return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def pairs(rng, tokens):
    entries = {uuid(rng): uuid(rng) for _ in range(int(tokens * BYTES_A_TOKEN["json"] / 82))}
    key = rng.choice(list(entries))
    return [json.dumps(entries, indent=1)], f"What is the value of the key {key}?", entries[key]


def log(rng, tokens):
    users = [f"{a}{n}{rng.randrange(100)}" for a in ADJECTIVES for n in NOUNS]
    rng.shuffle(users)
    who, users = users[0], users[1:40]
    services = ["auth", "billing", "gateway", "search", "upload", "worker"]
    actions = [
        "GET /v1/items 200 in {} ms",
        "session opened for user {user} from 10.{}.{}.{}",
        "cache miss for key item:{}, fetched in {} ms",
        "retry {} of request {} after timeout",
        "user {user} uploaded file of {} bytes",
    ]
    lines, second = [], 0
    while sum(map(len, lines)) < tokens * BYTES_A_TOKEN["log"]:
        second += rng.randrange(1, 9)
        said = rng.choice(actions).replace("{user}", rng.choice(users))
        said = re.sub(r"\{\}", lambda _: str(rng.randrange(1, 5000)), said)
        stamp = f"2026-03-14T{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}Z"
        lines.append(f"{stamp} {rng.choice(services)}[{rng.randrange(100, 999)}]: {said}")
    code = rng.randrange(10**5, 10**6)
    at = rng.randrange(len(lines))
    lines[at] = lines[at].split(" ")[0] + f" billing[{rng.randrange(100, 999)}]: payment of {who} declined, reference {code}"
    return ["\n".join(lines)], f"What is the reference of the declined payment of {who}?", str(code)


def code(rng, tokens):
    files, used = [], 0
    for path in rng.sample(modules(), len(modules())):
        text = path.read_text(encoding="utf-8", errors="replace")
        files.append((path.name, text))
        used += len(text)
        if used > tokens * BYTES_A_TOKEN["code"]:
            break
    found = []
    whole = "\n".join(text for _, text in files)
    for name, text in files:
        for constant, value in re.findall(r"^([A-Z][A-Z_]{5,}) = (['\"]?[\w./:-]{3,40}['\"]?)\s*$", text, re.M):
            if len(re.findall(rf"\b{constant}\b", whole)) <= 4 and whole.count(value) == 1:
                found.append((name, constant, value))
    if not found:
        return None
    name, constant, value = rng.choice(found)
    return [text for _, text in files], f"What is {constant} set to in {name}?", value


def chat(rng, tokens):
    turns = []
    for i, paragraph in enumerate(fill(rng, prose(), tokens * BYTES_A_TOKEN["chat"])):
        turns.append("User: Tell me something about Python." if i % 2 == 0 else "User: And what else?")
        turns.append(f"Assistant: {paragraph}")
    city, name = rng.choice(["Lisbon", "Nairobi", "Oslo", "Quito", "Riga"]), rng.choice(["Marta", "Idris", "Yuki", "Pavel"])
    number = rng.randrange(1000, 9999)
    at = rng.randrange(len(turns) // 2) * 2
    turns[at] = f"User: By the way, my colleague {name} in {city} has the room number {number}. And what else?"
    return ["\n".join(turns)], f"Which room number does {name} have?", str(number)


def prompt(kind, rng, tokens):
    make = {
        "needle": lambda: needles(rng, tokens, 0),
        "keys": lambda: needles(rng, tokens, 8),
        "json": lambda: pairs(rng, tokens),
        "log": lambda: log(rng, tokens),
        "code": lambda: code(rng, tokens),
        "chat": lambda: chat(rng, tokens),
    }[kind]
    while True:
        made = make()
        if made:
            return made


WAYS = {
    "prefold --effort fast": {"effort": "fast"},
    "prefold": {},
    "BM25": {"rank_method": "bm25"},
}


def interval(found, of):
    """95% by Wilson's score."""
    share, z = found / of, 1.96
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5 / (1 + z * z / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", default="4000,16000,64000", help="lengths of the prompts")
    parser.add_argument("--target", type=int, default=3000, help="tokens that are kept")
    parser.add_argument("--prompts", type=int, default=30, help="of each kind and length")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write all rows here too")
    args = parser.parse_args()
    rows = []
    for tokens in map(int, args.tokens.split(",")):
        for kind in args.kinds.split(","):
            made = [prompt(kind, random.Random(f"{args.seed} {kind} {tokens} {i}"), tokens) for i in range(args.prompts)]
            for way in [*args.ways.split(","), "the end"]:
                kept, before, after, start = 0, 0, 0, time.perf_counter()
                if way == "the end":
                    for contexts, _, answer in made:
                        text = "\n\n".join(contexts)
                        kept += answer in text[-int(args.target * BYTES_A_TOKEN[kind]):]
                    seconds = None
                else:
                    calls = "".join(
                        json.dumps({"name": i, "call": "compress", "args": {
                            "contexts": contexts, "question": question, "target_tokens": args.target,
                            "keep_question": False, "count": "cl100k", **WAYS[way]}}) + "\n"
                        for i, (contexts, question, _) in enumerate(made)
                    )
                    done = subprocess.run([args.program, "batch", "-", "--model", args.model],
                                          input=calls, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(f"needles: {done.stderr or done.stdout[:400]}")
                    for line, (_, _, answer) in zip(done.stdout.splitlines(), made):
                        result = json.loads(line)["result"]
                        kept += answer in result["text"]
                        before += result["tokens_before"]
                        after += result["tokens_after"]
                    seconds = (time.perf_counter() - start) / len(made)
                low, high = interval(kept, len(made))
                row = {"kind": kind, "tokens": before // len(made) or tokens, "way": way, "kept": kept, "of": len(made),
                       "low": low, "high": high, "tokens_after": after // len(made), "seconds": seconds}
                rows.append(row)
                took = f"{seconds:6.2f} s a prompt" if seconds else ""
                print(f"{kind:8} {row['tokens']:>7} {way:22} {kept / len(made):5.2f} [{low:.2f}, {high:.2f}] {took}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


main()
