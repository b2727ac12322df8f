"""Makes rank_text.json: rankings by rank_bm25 and by Python's gzip.

    python make_rank_text.py rank_text.json      # needs rank_bm25 and numpy
"""
import gzip
import json
import random
import sys

import numpy as np
from rank_bm25 import BM25Okapi

WORDS = "the a of tower Paris built in 1889 by Eiffel iron bridge river Seine is high 330 m, and city. When was made? é 日本 😀".split()


def distance(x, y):
    cx, cy = len(gzip.compress(x.encode())), len(gzip.compress(y.encode()))
    return (len(gzip.compress(f"{x} {y}".encode())) - min(cx, cy)) / max(cx, cy)


random.seed(2)
cases = []
for n in [1, 2, 3, 5, 8, 13, 20, 20]:
    corpus = [
        " ".join(random.choice(WORDS) for _ in range(random.randint(0, 60))) + random.choice(["", " ", "  x"])
        for _ in range(n)
    ]
    corpus[-1] = corpus[0]
    query = " ".join(random.choice(WORDS + ["unseen"]) for _ in range(random.randint(1, 9)))
    scores = BM25Okapi([text.split(" ") for text in corpus]).get_scores(query.split(" "))
    distances = np.array([distance(text, query) for text in corpus])
    cases.append({
        "corpus": corpus,
        "query": query,
        "bm25_scores": scores.tolist(),
        "bm25": np.argsort(-scores, kind="stable").tolist(),
        "gzip_len": [len(gzip.compress(text.encode())) for text in corpus],
        "gzip": np.argsort(distances, kind="stable").tolist(),
    })
json.dump(cases, open(sys.argv[1], "w"), ensure_ascii=False, separators=(",", ":"))
