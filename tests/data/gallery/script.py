"""Makes metrics.json: pairs of texts with what the Python packages say of them.

    python make_metrics.py metrics.json    # needs rouge-score==0.1.2, sacrebleu==2.6.0, transformers==4.57.6 (SQuAD v2's script)

ROUGE without a stemmer; BLEU is `sacrebleu.sentence_bleu` over 100; exact match and F1 are those of
`transformers.data.metrics.squad_metrics`.
"""
import json
import random
import sys

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1, normalize_answer

PAIRS = [
    ("", ""),
    ("", "gold"),
    ("said", ""),
    (" \n", "\t"),
    ("the", "a"),
    ("The Beatles", "beatles"),
    ("an apple a day", "apple day"),
    ("yes", "Yes."),
    ("in 1998", "1998"),
    ("U.S.A.", "USA"),
    ("a a a a", "a"),
    ("word word word word word", "word word"),
    ("the the the cat", "the cat the cat sat"),
    ("to be or not to be", "to be, or not to be: that is the question"),
    ("the cat sat on the mat", "the cat is sitting on the mat"),
    ("on the mat sat the cat", "the cat sat on the mat"),
    ("Exactly the same sentence, word for word.", "Exactly the same sentence, word for word."),
    ("Das Mädchen aß über 3,5 Äpfel.", "Das Maedchen ass ueber 3.5 Äpfel"),
    ("東京は日本の首都です。", "東京 は 日本 の 首都"),
    ("Привет, мир! Как дела?", "Привет мир"),
    ("İstanbul ẞ K ΑΣ", "i̇stanbul ss k ας"),
    ("a\u0301 the\u0301 an_ _a ²a a२ aⅧ", "a the an"),
    ("naïve café's — “quoted” …", "naive cafe's - \"quoted\" ..."),
    ("😀 fine 👍🏽", "fine 👍"),
    ("He paid $1,000.50 on 12-3-2020, i.e. 5-6% more.", "He paid $1000.50 on 12-3-2020 (5-6 % more)"),
    ("x<skipped>y &quot;z&quot; &amp;lt; a-\nb &lt;c&gt;", "xy \"z\" < a b <c>"),
    ("hyphen-\nated {braces} [brackets] ~tilde~ `tick` a/b c\\d @e #f", "hyphenated { braces } [ brackets ] a / b"),
    ("line one\nline two\r\nline three\x0bfour\x1cfive\x85six\u2028seven\u00a0eight", "line one line two line three four five six seven eight"),
    ("ends with a dot .", "ends with a dot."),
    ("1.5 .5 5. ,5 5, 1,2 a.b a,b ..", "1.5 .5 5 ,5"),
    ("one two", "one two three four five six seven eight"),
    ("one two three four five six seven eight", "one two"),
    ("Arthur's Magazine", "Arthur's Magazine (1844–1846) was an American literary periodical"),
]


def main(path):
    rng = random.Random(5)
    words = "the a of Rome 1998 was born in city river, king. Ünited of of".split()
    for length in (5, 40, 120):
        PAIRS.append(tuple(" ".join(rng.choice(words) for _ in range(length + k)) for k in (0, 3)))
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows = []
    for said, gold in PAIRS:
        scores = rouge.score(gold, said)
        rows.append({
            "said": said, "gold": gold,
            **{name.replace("rougeL", "rouge_l"): float(score.fmeasure) for name, score in scores.items()},
            "bleu": sacrebleu.sentence_bleu(said, [gold]).score / 100,
            "normalized": normalize_answer(said),
            "em": compute_exact(gold, said), "f1": float(compute_f1(gold, said)),
        })
    with open(path, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


main(*sys.argv[1:])
