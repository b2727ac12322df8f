"""Makes spm.json: a small SentencePiece BPE vocabulary and the ids that sentencepiece gives.

    python make_spm.py spm.json /usr/share/common-licenses/*      # needs sentencepiece

`ids` is sentencepiece's own encoding (no BOS), `decoded` what it makes of those ids. No text begins
with a user-defined symbol: there llama.cpp, which we follow, sets the dummy space behind the symbol.
"""
import io
import json
import random
import sys

import sentencepiece as spm

out, *sources = sys.argv[1:]
lines = [line for path in sources for line in open(path, errors="ignore").read().split("\n") if line.strip()]
model = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type="bpe",
    vocab_size=900,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    character_coverage=0.9995,
    user_defined_symbols=["<tool>", "<tool_end>"],
    num_threads=1,
    minloglevel=2,
)
sp = spm.SentencePieceProcessor(model_proto=model.getvalue())


def kind(i):
    if sp.is_unknown(i):
        return 2
    if sp.is_control(i):
        return 3
    if sp.is_byte(i):
        return 6
    if sp.is_unused(i):
        return 5
    return 4 if sp.id_to_piece(i).startswith("<tool") else 1


n = sp.get_piece_size()
texts = [
    "Hello, world!", "", " ", "  ", "   leading", "trailing   ", "a  b   c", "\n", "\n\nx\n", "\t\ttabs",
    "1234567 and 3.14", "日本語 и русский", "😀👩‍👩‍👧 emoji", "<s>no control</s>", "<0x41><0x0A>", "▁literal ▁ mark",
    "e\u0301 vs é", "the the the the", "a<tool>", "<too", "\u0000\u0001", "\u2028\u00a0\u3000",
    "internationalization of antidisestablishmentarianism", "x" * 50, "the" * 30,
]
random.seed(5)
pool = list("abcdefghijklmnopqrstuvwxyz     ETAOIN.,;:!?'\"0123456789\n-–—éüßжя日語😀▁<>/_") + ["the ", "ing", " of", "tion"]
texts += ["".join(random.choice(pool) for _ in range(random.randint(1, 40))) for _ in range(150)]
fixture = {
    "tokens": [sp.id_to_piece(i) for i in range(n)],
    "scores": [sp.get_score(i) for i in range(n)],
    "types": [kind(i) for i in range(n)],
    "cases": [
        {"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))} for t in texts
    ],
}
json.dump(fixture, open(out, "w"), ensure_ascii=False, separators=(",", ":"))
