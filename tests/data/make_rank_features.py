"""Features of the ranker's Python pilot for small prompts: tests/data/rank_features.json.

Written apart from the Rust code; needs Python and the package snowballstemmer.
Usage: python3 make_rank_features.py
"""

import json
import math
import pathlib
import re
from collections import Counter

import snowballstemmer

STEMMER = snowballstemmer.stemmer("english")
FUNCTION_WORDS = set(
    " a about after all also an and any are as at be because been before being between both but by can"
    " could did do does during each for from had has have he her him his how i if in into is it its"
    " more most no nor not of on one only or other our out over own same she so some such than that the"
    " their them then there these they this those through to too under until up very was we were what"
    " when where which while who whom whose why will with would you your ".split()
)
NAME = r"\b[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)+"
PROMPTS = [
    {
        "question": "Where was the author of the novel The Silver Lighthouse born?",
        "docs": [
            "Ada Roy: Ada Roy is a Belgian novelist. She was born in Ghent in 1950. Her father was Jan Roy.",
            "The Silver Lighthouse (novel): This book by Ada Roy won the Mertens Prize. It is big.",
            "Ghent, Belgium: The Flemish city of Ghent is a port. Belgian novelists lived there.",
            "Bread: Bread is baked from flour and water. It is an old food.",
            "Silver Coast: The Silver Coast is a shore with a lighthouse. The lighthouse keeper was born there.",
        ],
    },
    {
        "question": 'Which was founded first, Mill Bank or Harbour Bank of "North Haven"?',
        "docs": [
            "Mill Bank was founded in 1831 by two brothers. Its seat is in North Haven.",
            "Harbour Bank was founded in 1867. It lends to shipping companies, and Mill Bank owns a part of it.",
            "Founding a bank needs capital. Banks are regulated.",
        ],
    },
    {"question": "Who sang?", "docs": ["Nothing here answers. Nothing at all."]},
    {
        "question": "Which band was formed earlier, Band of Skulls or The Skulls of Vancouver?",
        "docs": [
            "Band of Skulls: Band of Skulls are an English trio from Southampton, formed in 2004.",
            "The Skulls (Canadian band): The Skulls were a punk group. They broke up in London.",
            "Band of Skulls: Their album Himalayan, made in London, came out in 2014.",
            "Southampton: Band of Skulls were formed in this port. Their album Himalayan followed.",
            "Vancouver, Canada: The Skulls were among its first Canadian punk bands.",
        ],
    },
]


def stem(word):
    return STEMMER.stemWord(word) if word.isascii() else word


def words(text):
    return [stem(w) for w in re.findall(r"[^\W_]+", text.lower()) if w not in FUNCTION_WORDS]


def bm25(texts, query, idf=None, k1=1.5, b=0.75):
    n = len(texts)
    mean = max(1, sum(map(len, texts)) / max(1, n))
    query = set(query)
    counts = [Counter(w for w in text if w in query) for text in texts]
    df = Counter(w for c in counts for w in c)
    idf = idf or (lambda w: math.log(1 + (n - df[w] + 0.5) / (df[w] + 0.5)))
    return [
        sum(idf(w) * c * (k1 + 1) / (c + k1 * (1 - b + b * len(text) / mean)) for w, c in count.items())
        for count, text in zip(counts, texts)
    ]


def z(values):
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return [(v - mean) / deviation if deviation > 1e-12 else 0.0 for v in values]


def order_of(values):
    return sorted(range(len(values)), key=lambda i: -values[i])


def rank(values):
    return [1 / (1 + sum(other > value for other in values)) for value in values]


def sentences(text):
    return [s for s in re.split(r"(?<=[.!?]) ", text) if s]


def subject(text):
    text = text.lstrip()[:70]
    end = re.search(r" \(|, | is | was | are | were ", text)
    if not end:
        return []
    before = re.sub(r"^(?:The|A|An) ", "", text[: end.start()])
    if not (before[:1].isupper() or before[:1].isnumeric()) or ". " in before:
        return []
    return words(before) if len(before.split()) <= 7 else []


def heads_of(text):
    title = re.match(r"([^:.?!]{2,70}): (?=\S)", text)
    found = []
    if title:
        bare = title.group(1)
        if bare.find(" (") > 0:
            bare = bare[: bare.find(" (")]
        found = [words(bare), words(bare.split(", ")[0])]
    found.append(subject(text[title.end() :] if title else text))
    return list(dict.fromkeys(tuple(h) for h in found if h))


def run_in(run, text):
    """The first place (start, end) of the words of run, one after the other, in text."""
    for i in range(len(text) - len(run) + 1):
        if tuple(text[i : i + len(run)]) == run:
            return i, i + len(run)
    return None


def grams(text):
    return {("#" + w + "#")[i : i + 4] for w in words(text) for i in range(len(w) - 1)}


def features(question, docs, scores=None):
    n = len(docs)
    texts = [words(d) for d in docs]
    sets = [set(t) for t in texts]
    asked = words(question)
    different = set(asked)
    f = {}
    raw = bm25(texts, asked)
    f["bm25"] = z(raw)
    f["bm25_rank"] = rank(raw)
    f["bm25_share"] = [x / (max(raw) or 1) for x in raw]
    f["tf"] = z(bm25(texts, asked, idf=lambda w: 1.0))
    df = Counter(w for s in sets for w in s)
    weight = {w: 1 - df[w] / n + 0.3 for w in different}
    total = sum(weight.values()) or 1
    cover = [sum(weight[w] for w in different if w in s) / total for s in sets]
    f["cover"] = cover
    f["cover_z"] = z(cover)
    pairs = lambda t: set(zip(t, t[1:]))
    f["bigrams"] = z([len(pairs(asked) & pairs(t)) for t in texts])
    wanted = grams(question)
    own = [grams(d) for d in docs]
    held = Counter(g for o in own for g in o)
    f["grams"] = z(
        [sum(math.log(1 + n / held[g]) for g in wanted if g in o) / (len(t) + 40) ** 0.3 for o, t in zip(own, texts)]
    )
    split = [[words(s) for s in sentences(d)] for d in docs]
    density = lambda s: sum(weight[w] for w in different if w in s) / (len(s) + 8) ** 0.4
    f["sentence"] = z([max([density(s) for s in ss] + [0]) for ss in split])
    f["first_sentence"] = z([sum(weight[w] for w in different if w in ss[0]) / total for ss in split])
    heads = [heads_of(d) for d in docs]
    f["head_in_question"] = [
        max([sum(w in different for w in h) / len(h) for h in hs] + [0.0]) for hs in heads
    ]
    whole = [float(any(all(w in different for w in h) for h in hs)) for hs in heads]
    f["head_whole"] = whole
    holders = Counter(h for hs in heads for h in hs)
    telling = [[h for h in hs if holders[h] * 2 <= max(n, 4)] for hs in heads]
    mentions = [
        [i != j and any(run_in(h, texts[i]) for h in telling[j]) for j in range(n)]
        for i in range(n)
    ]
    f["mentioned"] = [sum(mentions[i][j] for i in range(n)) / n for j in range(n)]
    f["mentions"] = [sum(mentions[i]) / n for i in range(n)]
    union = lambda i, j: sum(weight[w] for w in different if w in sets[i] or w in sets[j]) / total
    best_of = lambda value: [max([value(i, j) for j in range(n) if j != i] + [-9.0]) for i in range(n)]
    f["union"] = z(best_of(union))
    names = set(re.findall(NAME + r'|"[^"]+"', question))
    f["names"] = [sum(name.strip('"') in d for name in names) / max(1, len(names)) for d in docs]
    f["length"] = z([len(t) for t in texts])
    runs = []
    for hs in heads:
        asked_heads = [h for h in hs if run_in(h, asked)]
        longest = max(map(len, asked_heads), default=0)
        last = [h for h in asked_heads if len(h) == longest][-1:]
        runs.append(run_in(last[0], asked) if last else None)
    f["named"] = [sum(weight[w] for w in asked[r[0] : r[1]]) / total if r else 0.0 for r in runs]
    within = lambda r, o: o[0] <= r[0] and r[1] <= o[1] and o[1] - o[0] > r[1] - r[0]
    f["named_alone"] = [
        0.0 if r and any(o and within(r, o) for o in runs) else x for r, x in zip(runs, f["named"])
    ]

    base = [a + 0.5 * b + 2 * c for a, b, c in zip(f["bm25"], f["cover_z"], whole)]
    if scores:
        base = [3 * x for x in z(scores)]
    f["base"] = [b / 3 for b in base]
    order = order_of(base)
    rarity = {w: 0.0 if w in different else 1 - (df[w] - 1) / n for w in df}
    bridge = lambda i, j: float(i == j) or max(
        [sum(rarity[w] for w in h if w in sets[i]) / len(h) for h in heads[j]] + [0.0]
    )
    for step in (0, 1):
        best = order[min(step, n - 1)]
        like = bm25(texts, texts[best])
        like[best] = 0.0
        like[best] = max(like)
        f[f"like_{step + 1}"] = [x / (max(like) or 1) for x in like]
        f[f"best_mentions_{step + 1}"] = [float(mentions[best][j]) for j in range(n)]
        f[f"mentions_best_{step + 1}"] = [float(mentions[j][best]) for j in range(n)]
        f[f"best_bridges_{step + 1}"] = [bridge(best, j) for j in range(n)]
        f[f"bridges_best_{step + 1}"] = [bridge(j, best) for j in range(n)]
        f[f"shared_rare_{step + 1}"] = [
            sum(rarity[w] ** 2 for w in sorted(sets[best] & sets[j]))
            / math.sqrt((len(texts[best]) + 20) * (len(texts[j]) + 20))
            for j in range(n)
        ]
        left = [w for w in different if w not in sets[best]]
        lacked = sum(weight[w] for w in left) or 1
        lacking = [sum(weight[w] for w in left if w in s) / lacked for s in sets]
        lacking[best] = 0.5
        f[f"lacking_{step + 1}"] = lacking
        f[f"lacking_rank_{step + 1}"] = rank(lacking)
        f[f"is_{step + 1}"] = [float(i == best) for i in range(n)]
    f["best_mention"] = [max([base[i] for i in range(n) if mentions[i][j]] + [-2.0]) for j in range(n)]
    f["best_mentioned"] = [max([base[j] for j in range(n) if mentions[i][j]] + [-2.0]) for i in range(n)]
    pair = lambda i, j: union(i, j) + 0.3 * (mentions[i][j] or mentions[j][i]) + 0.1 * (base[i] + base[j])
    f["pair"] = z(best_of(pair))
    named = [set(re.findall(NAME, d)) for d in docs]
    held = Counter(c for s in named for c in s)
    best = order[0]
    f["shared_names"] = [1.0 if i == best else sum(1 / held[c] for c in named[i] & named[best]) for i in range(n)]
    compares = float(bool(re.search(r"\b(or|both|same|between|older|first|more)\b", question.lower())))
    f["compares_head"] = [compares * x for x in whole]
    f["compares_lacking"] = [compares * x for x in f["lacking_1"]]
    return f


if __name__ == "__main__":
    cases = []
    for prompt in PROMPTS:
        scores = [math.sin(3 * i + 1) for i in range(len(prompt["docs"]))]
        first = features(prompt["question"], prompt["docs"])
        second = features(prompt["question"], prompt["docs"], scores)
        cases.append(prompt | {"scores": scores, "first": first, "second": second})
    path = pathlib.Path(__file__).with_name("rank_features.json")
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")
