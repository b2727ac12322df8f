"""Random calls of the reference's API: every option that a causal LM takes, in all their combinations."""

import pathlib
import random

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What prose under examples/ lacks: other scripts, emoji, code, lists, abbreviations, worked answers.
ODDITIES = [
    "fn main() {\n    let x = 5;\n    println!(\"{x}\");\n}\n",
    "naïve café — 東京は日本の首都です。大阪も大きい。\nПривет, мир! Как дела? 🦀🎉 ok.\n",
    "Q: What is 17 plus 25?\nA: 17 and 25 make 42. So it is 42.\n\n",
    "- item one\n- item two\n\n* nested: a.b.c (e.g. this). Dr. Brown flew to the U.S. in Jan. 1958. \"Why?\" he said. Well...\n",
]
QUESTIONS = ["Who decides when the standard changes?", "What does the second argument mean?"]
INSTRUCTIONS = ["Answer from the text.", "Given these documents, answer in a few words.\n"]
# Probability, name, how a value is drawn.
OPTIONS = [
    (0.2, "concate_question", lambda r, n: False),
    (0.1, "add_instruction", lambda r, n: True),
    (0.3, "iterative_size", lambda r, n: r.choice([20, 50, 100, 130, 300])),
    (0.35, "use_sentence_level_filter", lambda r, n: True),
    (0.2, "keep_first_sentence", lambda r, n: r.randint(1, 2)),
    (0.2, "keep_last_sentence", lambda r, n: r.randint(1, 2)),
    (0.2, "keep_sentence_number", lambda r, n: r.randint(1, 2)),
    (0.1, "high_priority_bonus", lambda r, n: r.choice([5, 100])),
    (0.1, "token_budget_ratio", lambda r, n: r.choice([1.0, 1.4, 2.0])),
    (0.1, "use_token_level_filter", lambda r, n: False),
    (0.1, "use_context_level_filter", lambda r, n: False),
    (0.1, "force_context_ids", lambda r, n: r.sample(range(n), r.randint(1, n))),
    (0.1, "force_context_number", lambda r, n: r.randint(1, n)),
    (0.15, "keep_split", lambda r, n: True),
    (0.3, "context_budget", lambda r, n: r.choice(["+0", "+200", "*1.2", "-20", "/1.5"])),
    (0.4, "reorder_context", lambda r, n: r.choice(["original", "sort", "two_stage"])),
    (0.35, "dynamic_context_compression_ratio", lambda r, n: r.choice([0.2, 0.3, 0.4])),
]
WITH_QUESTION = [
    (1.0, "rank_method", lambda r, n: r.choice(["llmlingua", "longllmlingua", "longllmlingua", "bm25", "gzip"])),
    (0.6, "condition_in_question",
     lambda r, n: r.choice(["none", "before", "after", "before_condition", "after_condition"])),
    (0.35, "condition_compare", lambda r, n: True),
]
NOT_STRUCTURED = ["use_token_level_filter", "use_context_level_filter", "add_instruction", "force_context_ids"]
TAGS = ["<llmlingua>", "<llmlingua, compress=False>", "<llmlingua, rate=0.3>", "<llmlingua, rate=0.7, compress=True>"]


def random_calls(count, seed):
    """Name, call and arguments, `count` times."""
    draw = random.Random(seed)
    documents = [path.read_text() for path in sorted((ROOT / "examples/peps").glob("pep-*.txt"))]
    return [(f"random {seed}/{i}", *random_call(draw, documents)) for i in range(count)]


def random_call(draw, documents):
    contexts = [piece(draw, documents) for _ in range(draw.randint(1, 5))]
    n = len(contexts)
    args = {"context": contexts}
    if draw.random() < 0.75:
        args["rate"] = round(draw.uniform(0.08, 0.95), 2)
    else:
        args["target_token"] = draw.randint(20, 400)
    if draw.random() < 0.3:
        args["instruction"] = draw.choice(INSTRUCTIONS)
    options = list(OPTIONS)
    if draw.random() < 0.7:
        args["question"] = draw.choice(QUESTIONS)
        options += WITH_QUESTION
    args |= {name: value(draw, n) for chance, name, value in options if draw.random() < chance}
    if draw.random() < 0.8:
        return "compress_prompt", args
    for name in NOT_STRUCTURED:
        args.pop(name, None)
    args["context"] = [f"{draw.choice(TAGS)}{text}</llmlingua>" for text in contexts]
    return "structured_compress_prompt", args


def piece(draw, documents):
    """300 to 2,000 characters from anywhere in a document, or something odd."""
    if draw.random() < 0.25:
        return draw.choice(ODDITIES) * draw.randint(1, 3)
    document = draw.choice(documents)
    start = draw.randrange(max(1, len(document) - 300))
    return document[start:start + draw.randint(300, 2000)]
