"""Arguments at random: each call gives a result or an error of ours, and the process lives."""

import math
import os
import random
import time

import prefold
import pytest
from prefold.llmlingua import PromptCompressor

SECONDS = float(os.environ.get("PREFOLD_FUZZ_SECONDS", "3"))

VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**64,
    -(2**70),
    0.0,
    0.5,
    1.0,
    -0.5,
    1e308,
    math.nan,
    math.inf,
    "",
    "a",
    "\x00",
    "\ud800",
    "exact",
    "llmlingua",
    "longllmlingua",
    "bm25",
    "gzip",
    "token",
    "+100",
    "*0",
    "/0",
    "+1e999",
    "after_condition",
    "two_stage",
    [],
    [0],
    [-1],
    ["a"],
    [[]],
    {},
    {"a": 1},
    {"rate": 0.5},
    b"bytes",
    object(),
    print,
    float,
    range(3),
    "x" * 5000,
    "<llmlingua, rate=0.5>a</llmlingua>",
    "<llmlingua",
    ["a. b. c.", ""],
    ['{"a": [1, 2]}'],
    "Die Straße. " * 20,
    "東京は日本の首都です。" * 9,
]
NAMES = [
    "contexts",
    "question",
    "instruction",
    "rate",
    "target_tokens",
    "rank_method",
    "deadline",
    "progress",
    "mode",
    "structured",
    "granularity",
    "count",
    "ranker",
    "effort",
    "enough",
    "reorder",
    "keep_question",
    "force_contexts",
    "force_tokens",
    "force_digits",
    "keep_first_sentence",
    "high_priority_bonus",
    "per_context",
    "as_kind",
    "dedupe",
    "mark",
    "fill",
    "omitted_items",
    "trace",
    "context_scores",
    "iterative_size",
    "context_budget",
    "no_such",
]
REFERENCE = [
    "instruction",
    "question",
    "rate",
    "target_token",
    "iterative_size",
    "force_context_ids",
    "use_sentence_level_filter",
    "use_token_level_filter",
    "keep_first_sentence",
    "context_budget",
    "condition_in_question",
    "reorder_context",
    "dynamic_context_compression_ratio",
    "condition_compare",
    "rank_method",
    "force_tokens",
    "context_segs",
]


def some(rng, names):
    return {name: rng.choice(VALUES) for name in rng.sample(names, rng.randrange(4))}


def a_call(rng, compressor, lingua):
    value = rng.choice(VALUES)
    calls = [
        lambda: compressor.compress(value, **some(rng, NAMES[1:])),
        lambda: compressor.compress_batch([{"contexts": value, **some(rng, NAMES)}]),
        lambda: compressor.compress_messages(value, **some(rng, NAMES[3:])),
        lambda: compressor.compress_messages(
            [{"role": "tool", "content": value}, {"role": "user", "content": "?"}],
            min_tokens=0,
            **some(rng, NAMES[3:]),
        ),
        lambda: compressor.compress_json(
            {"a": value},
            {
                "a": {
                    "rate": 0.5,
                    "compress": True,
                    "value_type": rng.choice(VALUES),
                    "pair_remove": True,
                }
            },
        ),
        lambda: compressor.recover(value, rng.choice(VALUES), rng.choice(VALUES)),
        lambda: compressor.rank(value, rng.choice(VALUES), rng.choice(VALUES)),
        lambda: compressor.score(value, deadline=rng.choice(VALUES)),
        lambda: compressor.tokenize(value),
        lambda: compressor.detokenize([value]),
        lambda: compressor.count_tokens(value, rng.choice(VALUES)),
        lambda: compressor.prefill(value, rng.choice(VALUES), "snapkv"),
        lambda: compressor.generate(value, max_new_tokens=2, temperature=rng.choice(VALUES)),
        lambda: prefold.Compressor(value, rng.choice(VALUES), rng.choice(VALUES)).open(),
        lambda: prefold.Prefix.open(value),
        lambda: lingua.compress_prompt(value, **some(rng, REFERENCE)),
        lambda: lingua.structured_compress_prompt(value, **some(rng, REFERENCE)),
    ]
    return rng.choice(calls)


# What a wrong call in Python gives, wherever it is noticed.
PYTHONS = (TypeError, ValueError, AttributeError, OverflowError)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [1, 2])
def test_arguments_at_random(compressor, model, monkeypatch, tmp_path, seed):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    lingua = PromptCompressor(model, device_map="cpu")
    rng = random.Random(seed)
    end = time.monotonic() + SECONDS
    ours = calls = 0
    while time.monotonic() < end:
        calls += 1
        try:
            a_call(rng, compressor, lingua)()
        except prefold.PrefoldError as error:
            assert str(error) and "panicked" not in str(error), error
            ours += 1
        except PYTHONS as error:
            assert "panic" not in str(error).lower(), error
    assert calls > 20 and ours > 5
    # It still works.
    assert compressor.compress("One sentence here. Another one there.", rate=0.6).text
