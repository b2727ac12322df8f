"""Rows for `prefold train rank` out of HotpotQA rows whose right paragraphs are run together.

A row's `context` that begins or ends with a paragraph of the corpus is cut there, and becomes `docs` of
two, both right; rows that are not named `hotpot…` stay as they are; a HotpotQA row that cannot be cut is
left out.

Usage: python3 tools/ranker_rows.py QA.jsonl CORPUS.jsonl[.xz] > ROWS.jsonl
"""

import json
import lzma
import re
import sys

EDGE = 70  # characters by which a paragraph is known


def texts(path):
    opened = lzma.open if path.endswith(".xz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def cut(context, begins, ends):
    """The two paragraphs of a context, or None."""
    context = re.sub(r"\s+", " ", context).strip()
    first = begins.get(context[:EDGE])
    if first and context.startswith(first) and len(context) > len(first) + 60:
        return [first, context[len(first) :].strip()]
    last = ends.get(context[-EDGE:])
    if last and context.endswith(last) and len(context) > len(last) + 60:
        return [context[: -len(last)].strip(), last]
    return None


def main(rows, corpus):
    paragraphs = list(texts(corpus))
    begins = {text[:EDGE]: text for text in paragraphs}
    ends = {text[-EDGE:]: text for text in paragraphs}
    counts = {"two": 0, "one": 0, "left out": 0}
    for line in open(rows, encoding="utf-8"):
        row = json.loads(line)
        kept = {key: row[key] for key in ("id", "question", "answers")}
        if row["id"].startswith("hotpot"):
            docs = cut(row["context"], begins, ends)
            if docs is None:
                counts["left out"] += 1
                continue
            kept |= {"docs": docs, "gold": [0, 1]}
            counts["two"] += 1
        else:
            kept["context"] = row["context"]
            counts["one"] += 1
        print(json.dumps(kept, ensure_ascii=False))
    print(counts, file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
