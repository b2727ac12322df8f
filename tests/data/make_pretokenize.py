"""Makes pretokenize.json: where other models' pre-tokenizers cut texts into words.

    pip install tokenizers==0.22.1 && python make_pretokenize.py

The reference is Hugging Face's `tokenizers`, with the regular expressions of the models' own
tokenizer.json (tekken, gpt-4o, deepseek-llm) and, for `default`, those of llama.cpp's default.
"""

import json
import pathlib
import random

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, CONTRACTION = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def cased(end, digits):
    return (
        rf"{LEAD}{UPPER}*{LOWER}+{end}|{LEAD}{UPPER}+{LOWER}*{end}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Escaped, because normalised forms of some are other characters.
CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
PATTERNS = {
    "gpt-4o": [cased(CONTRACTION, r"\p{N}{1,3}")],
    "tekken": [cased("", r"\p{N}")],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{CASED}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ],
    "default": [
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ],
}

random.seed(7)
PIECES = [
    "word", " Word", "camelCase", "HTTPServer", "don't", "I'LL", "it'ſ", " ", "  ", "\n", "\r\n", "\t", "\u00a0",
    "12345", "3.14", "٣٤", "½", "/", "//", "a/b", "->", "==", "$", "+", "~", "|", "«", "。", "！", "東京", "ひらがな",
    "한국어", "ไทย", "हिन्दी", "عربي", "Éa", "éA", "ǅ", "ʰ", "a\u0301", "\u0301", "🎉", "👍🏽", "Ⅷ", "_", "x", "Ա", "ա", "ა",
]  # fmt: skip
texts = ["".join(random.choices(PIECES, k=random.randint(1, 14))) for _ in range(220)]
rows = []
for text in texts:
    row = {"text": text}
    for name, patterns in PATTERNS.items():
        splitter = Sequence([Split(Regex(p), "isolated") for p in patterns])
        row[name] = [piece for piece, _ in splitter.pre_tokenize_str(text)]
        assert "".join(row[name]) == text
    rows.append(row)
path = pathlib.Path(__file__).with_name("pretokenize.json")
path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
