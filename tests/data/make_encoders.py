#!/usr/bin/env python3
"""Makes golden/encoders: tiny random encoder models, what PyTorch makes of them, and rows by LLMLingua-2.

    make_encoders.py models OUT              # torch, transformers 4.46.3, tokenizers 0.20.3
    make_encoders.py modernbert OUT          # torch, transformers 4.57.6
    make_encoders.py llmlingua2 OUT CL100K   # after `models`, in the same environment; llmlingua 0.2.2

OUT is the folder golden/encoders; CL100K is the vocabulary of cl100k_base (`cl100k_base.tiktoken`), which tiktoken would
download. Run with OMP_NUM_THREADS=1: sums in another order change the last digits.
"""

import json
import os
import pathlib
import random
import shutil
import sys
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
PIECES = 1400

# ---- texts

# In the order of golden.json.
TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Déjà vu: le cœur naïf d'une forêt où l'été s'achève à Noël.",
    "Größere Straßen führen übers Gebirge; Fußgänger müssen warten!",
    "Библиотека была открыта в 1895 году. Ёлка стояла у входа.",
    "Ο φάρος χτίστηκε το 1888 και φαίνεται από όλη την πόλη. ΟΔΥΣΣΕΥΣ",
    "老灯塔建于1886年，位于岛的东端。",
    "古い灯台は1903年に建てられた。高さは二十八メートルで、カフェもある。",
    "بنيت المنارة القديمة عام 1880 على شاطئ البحر، أليس كذلك؟",
    "पुराना किला 1650 में राजा वीर सिंह ने बनवाया था।",
    "Launch 🚀 at 5 😀👩‍👩‍👧 and 👍🏽 — “done” … ﬁne ½ Ｆｕｌｌ",
    "fn main() { let x: u32 = a[0] + 0x1F; println!(\"{x:>8}\\n\"); } // snake_case",
    "1,234,567.89 + 3.14 = ٣٤ 2024-05-17T12:30:00Z 50% $9.99 #42\tend\n\nnew  line  ",
]

# Texts of languages.json and of the gallery, and of scripts that are not there.
MORE = [
    "Η βιβλιοθήκη άνοιξε το 1895 και έχει χιλιάδες βιβλία. Ο φάρος είναι ψηλός. Το λιμάνι κλείνει όταν φυσάει.",
    "Πόσο ψηλός είναι ο φάρος της πόλης; Το καΐκι φεύγει στις επτά από το παλιό λιμάνι.",
    "Latarnia morska stoi na wyspie od 1874 roku. Żółć i gęślą jaźń. Çeşme İzmir'in batısındadır. Đà Nẵng là thành phố.",
    "def total(values): return sum(value for value in values if value > 0)  # the sum of the positive values",
    "fn main() { let mut count = 0; for item in items.iter() { count += item.len(); } println!(\"{}\", count); }",
    "for (let i = 0; i < n; i++) { total += prices[i] * 1.19; } // with tax, $9.99 and 3.14 and 2024-05-17 at 12:30",
    "The meeting begins at 9:30. Item 1: the budget of 2024. Item 2: the harbour. She isn't here; they've gone. I'm late!",
    "Speaker 1: The council votes on the motion. Speaker 2: I second the motion. All in favour? The motion carries, 5 to 2.",
    "Launch day 🚀🚀 went well 😀😀 thanks 👍 to all 🎉 of you ❤ and 😀 again 🚀 👍 🎉.",
]


def corpus():
    out = list(TEXTS) + list(MORE)
    for language in json.loads((HERE / "languages.json").read_text(encoding="utf-8")).values():
        out += language["passages"] + [question for question, _ in language["questions"]]
    out += (HERE / "gallery/prose.txt").read_text(encoding="utf-8").split("\n")
    return [text for text in out if text]


# ---- tokenizers


def wordpiece(lowercase):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def unigram():
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES - 3, special_tokens=special, unk_token="<unk>", max_piece_length=10, show_progress=False
    )
    trained.train_from_iterator(corpus(), trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"][len(special) :]
    # Marks behind a space are single tokens in XLM-R; of these two here one is and one is not.
    pieces = {piece: round(score, 4) for piece, score in pieces if piece != "▁!"}
    pieces["▁?"], pieces["▁."] = -4.5, -4.25
    for mark in "?!.#":
        pieces.setdefault(mark, -8.0)
    ranked = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    vocab = [(token, 0.0) for token in special] + ranked + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(special + [AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES - 5, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    tokenizer.add_special_tokens(special + [AddedToken("[MASK]", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(folder, make):
    """The tokenizer in `folder`, or a new one: which of two equally frequent pairs a trainer merges differs from run to run."""
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else make()


def save_tokenizer(tokenizer, folder):
    """As transformers saves it, but tokenizer.json on one line and the vocabulary only there."""
    tokenizer.save_pretrained(folder)
    for name in ("vocab.txt", "sentencepiece.bpe.model"):
        (folder / name).unlink(missing_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")) + "\n",
        encoding="utf-8",
    )


# ---- models


STD = {
    "word_embeddings.weight": 1.0,
    "tok_embeddings.weight": 1.0,
    "output.dense.weight": 0.1,
    "classifier.weight": 0.8,
    "classifier.out_proj.weight": 0.8,
}


def randomise(model, seed):
    """Every parameter matters: a standard deviation of 0.3, norms around 1. Words' embeddings are larger and what the layers
    add is smaller, so that tokens stay apart; the head's matrix is larger, so that probabilities spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            std = next((std for part, std in STD.items() if part in name), 0.3)
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
            if name.endswith("weight") and parameter.dim() == 1:
                parameter.add_(1.0)
    return model.eval()


def rounded(tensor):
    return [float("{0:.7g}".format(value)) for value in tensor.detach().flatten().tolist()]


def embedding(hidden):
    """Mean pooling and length 1, as sentence-transformers'."""
    return torch.nn.functional.normalize(hidden.mean(0), dim=0)


def sequences(tokenizer, seed):
    rng = random.Random(seed)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    plain = [id for id in range(len(tokenizer)) if id not in tokenizer.all_special_ids]
    return [[first] + [rng.choice(plain) for _ in range(n - 2)] + [last] for n in (41, 17)]


def forward(model, ids, types):
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if types is not None:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        hidden = model.base_model(**inputs)[0][0]
        out = model(**inputs)
    return hidden, out.logits[0] if "logits" in out else None


PAIRS = [
    ("How high is the lighthouse?", "The lighthouse of Norderney was built in 1874. It is 54 metres high."),
    ("Wie hoch ist der Leuchtturm?", "Er ist 54 Meter hoch und steht im Osten der Insel."),
    ("Когда открыли библиотеку?", "老灯塔建于1886年，位于岛的东端。"),
    ("灯台の高さは？", "古い灯台は1903年に建てられた。高さは二十八メートルで、島の北に立っている。"),
]


def save(model, tokenizer, folder, seed, has_types):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    randomise(model, seed)
    if hasattr(model, "classifier") and hasattr(model.classifier, "bias"):
        # So that every label is likely for some tokens.
        logits = torch.cat([forward(model, ids, None)[1] for ids in sequences(tokenizer, seed)])
        model.classifier.bias.data -= logits.mean(0)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    name, pooled = folder.name, folder.name == "bert"

    tensors = {}
    for i, ids in enumerate(sequences(tokenizer, seed)):
        types = [int(2 * j >= len(ids)) for j in range(len(ids))] if has_types else None
        hidden, logits = forward(model, ids, types)
        tensors["ids.%d" % i] = torch.tensor(ids)
        if has_types:
            tensors["types.%d" % i] = torch.tensor(types)
        tensors["hidden.%d" % i] = hidden.contiguous()
        if logits is not None:
            tensors["logits.%d" % i] = logits.contiguous()
        if pooled:
            tensors["embedding.%d" % i] = embedding(hidden)
    save_file(tensors, folder / "golden.safetensors")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)

    rows = []
    for text in TEXTS:
        row = {"text": text, "ids": tokenizer(text)["input_ids"]}
        if pooled:
            types = [0] * len(row["ids"])
            row["embedding"] = rounded(embedding(forward(model, row["ids"], types)[0]))
        rows.append(row)
    facts = {"texts": rows}
    if name.endswith("reranker"):
        facts["pairs"] = []
        for question, passage in PAIRS:
            ids = tokenizer(question, passage)["input_ids"]
            score = rounded(forward(model, ids, None)[1])[0]
            facts["pairs"].append({"question": question, "passage": passage, "ids": ids, "score": score})
    lines = ",\n".join(
        json.dumps(key) + ": [\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
        for key, rows in facts.items()
    )
    (folder / "golden.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def make_models(out):
    from transformers import (
        BertConfig,
        BertForTokenClassification,
        BertModel,
        BertTokenizerFast,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaTokenizerFast,
    )

    def bert(vocab, labels=2, hidden=32, layers=3, positions=512):
        return BertConfig(
            vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=positions, num_labels=labels,
        )

    def xlmr(vocab, labels):
        return XLMRobertaConfig(
            vocab_size=vocab, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
            eos_token_id=2, num_labels=labels,
        )

    uncased = BertTokenizerFast(tokenizer_object=trained(out / "bert", lambda: wordpiece(True)), do_lower_case=True, model_max_length=512)
    save(BertModel(bert(len(uncased), hidden=48)), uncased, out / "bert", 1, True)
    (out / "bert/1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": 48,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (out / "bert/1_Pooling/config.json").write_text(json.dumps(pooling, indent=2) + "\n")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (out / "bert/modules.json").write_text(json.dumps(modules, indent=2) + "\n")

    cased = BertTokenizerFast(
        tokenizer_object=trained(out / "mbert-tokens", lambda: wordpiece(False)), do_lower_case=False, strip_accents=None, model_max_length=512
    )
    save(BertForTokenClassification(bert(len(cased))), cased, out / "mbert-tokens", 2, True)
    small = bert(len(cased), labels=3, hidden=16, layers=1, positions=64)
    save(BertForTokenClassification(small), cased, out / "bert3", 5, True)

    pieces = trained(out / "xlmr-tokens", unigram)
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    tokenizer = XLMRobertaTokenizerFast(tokenizer_object=pieces, mask_token=mask, model_max_length=512)
    save(XLMRobertaForTokenClassification(xlmr(len(tokenizer), 2)), tokenizer, out / "xlmr-tokens", 3, False)
    save(XLMRobertaForSequenceClassification(xlmr(len(tokenizer), 1)), tokenizer, out / "xlmr-reranker", 4, False)


def make_modernbert(out):
    from transformers import (
        ModernBertConfig,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
        ModernBertModel,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained(out / "modernbert", byte_pairs), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token=AddedToken("[MASK]", lstrip=True, special=True, normalized=False), model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )

    def config(hidden, **more):
        return ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden // 2, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=512, global_attn_every_n_layers=3, local_attention=16,
            attn_implementation="eager", reference_compile=False, pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, **more,
        )

    save(ModernBertModel(config(32)), tokenizer, out / "modernbert", 6, False)
    tokens = ModernBertForTokenClassification(config(16, num_labels=2))
    save(tokens, tokenizer, out / "modernbert-tokens", 7, False)
    reranker = ModernBertForSequenceClassification(config(16, num_labels=1, classifier_pooling="mean"))
    save(reranker, tokenizer, out / "modernbert-reranker", 8, False)


# ---- rows by llmlingua

NAMES = {"mbert-tokens": "bert-base-multilingual-cased", "xlmr-tokens": "xlm-roberta-large"}
MARKS = ["\n", "?", "!", "."]

MEETING = (
    "Speaker 1: The council votes on the motion, item 12. Is it clear? It is! Speaker 2: I second the motion.\n\n"
    "The meeting begins at 9:30; the budget of 2024 is $9.99. All in favour?? The motion carries, 5 to 2!! Thanks.\n"
)
MIXED = " ".join([TEXTS[3], TEXTS[7], TEXTS[2], TEXTS[8]])


def words_of(seed, count, ends=(". ", "? ", "! ", ".\n")):
    """A text of `count` random words of the corpus; without `ends` it has no end of a sentence."""
    rng = random.Random(seed)
    words = sorted({word.strip(".,;:!?\"'()[]{}#。、؟।") for text in corpus() for word in text.split()} - {""})
    text = ""
    for _ in range(count):
        text += rng.choice(words)
        text += rng.choice(ends) if ends and rng.random() < 0.08 else " "
    return text


def named():
    """(name, arguments); for each of the two models."""
    short = {"context": [MEETING]}
    several = {"context": [MEETING, MIXED, TEXTS[0] + " " + TEXTS[5], TEXTS[1] + " " + TEXTS[9], words_of(3, 40)]}
    filtered = dict(several, use_context_level_filter=True, return_word_label=True)
    long = words_of(1, 330)
    endless = words_of(2, 300, ends=())
    return [
        ("defaults, a str", {"context": MEETING}),
        ("defaults, a list", short),
        ("rate 0.33", dict(short, rate=0.33)),
        ("rate 0.9", dict(short, rate=0.9)),
        ("rate 1", dict(short, rate=1.0, return_word_label=True)),
        ("rate above 1", dict(short, rate=1.5)),
        ("rate 0", dict(short, rate=0.0)),
        ("rate 0.01", dict(short, rate=0.01)),
        ("target_token", dict(short, target_token=20, rate=0.9)),
        ("target_token 0", dict(short, target_token=0)),
        ("target_token beyond the text", dict(short, target_token=1000)),
        ("instruction and question are ignored", dict(short, instruction="Be brief.", question="Who votes?", rate=0.6)),
        ("no token filter", dict(short, use_token_level_filter=False, force_tokens=MARKS, return_word_label=True)),
        ("mixed scripts", {"context": MIXED, "rate": 0.5, "return_word_label": True}),
        ("word labels with other separators", dict(short, return_word_label=True, word_sep="|", label_sep="_")),
        ("first token stands for the word", dict(short, token_to_word="first", return_word_label=True)),
        ("token_to_word unknown", dict(short, token_to_word="max")),
        ("force_tokens of the vocabulary", dict(short, rate=0.2, force_tokens=["?", "."], return_word_label=True)),
        ("force_tokens that are added", dict(short, rate=0.2, force_tokens=MARKS, return_word_label=True)),
        ("force_tokens: two words", dict(short, rate=0.2, force_tokens=["the motion", "!"], return_word_label=True)),
        ("force_tokens: one inside another", dict(short, rate=0.2, force_tokens=["\n", "\n\n", "motion, item"])),
        ("force_tokens: the longer one first", dict(short, rate=0.2, force_tokens=["\n\n", "\n", "motion, item"])),
        ("force_tokens: the empty one", {"context": "one two", "rate": 0.5, "force_tokens": [""]}),
        ("force_tokens: too many", dict(short, force_tokens=["t%d" % i for i in range(101)])),
        ("drop_consecutive", dict(short, rate=0.3, force_tokens=MARKS, drop_consecutive=True, return_word_label=True)),
        (
            "drop_consecutive of many marks",
            {"context": "Well??? No!! !! ! Yes. . .\n\n\n\nIs it? ? so.\n", "rate": 0.6, "force_tokens": MARKS,
             "drop_consecutive": True, "return_word_label": True},
        ),
        ("drop_consecutive without force_tokens", dict(short, drop_consecutive=True, rate=0.4)),
        ("force_reserve_digit", dict(short, rate=0.2, force_reserve_digit=True, return_word_label=True)),
        ("force_reserve_digit of all scripts", {"context": [TEXTS[11], TEXTS[8]], "rate": 0.3, "force_reserve_digit": True}),
        ("everything is forced", {"context": "1 2 3 4 5 6 7 8 9", "rate": 0.5, "force_reserve_digit": True}),
        ("several contexts", dict(several, rate=0.4, return_word_label=True)),
        ("context filter", dict(filtered, rate=0.4)),
        ("context filter by target_token", dict(filtered, target_token=60)),
        ("context filter by target_token 0", dict(filtered, target_token=0)),
        ("context filter by target_context", dict(filtered, target_context=2, rate=0.5)),
        ("context filter by target_context 0", dict(filtered, target_context=0, rate=0.5)),
        ("context filter by context_level_rate", dict(filtered, context_level_rate=0.5, rate=0.5)),
        ("context filter by tokens", dict(filtered, context_level_target_token=150, target_context=1, rate=0.5)),
        ("context filter with forced contexts", dict(filtered, target_context=1, rate=0.5, force_context_ids=[0, 3, 9])),
        ("context filter only", dict(filtered, rate=0.4, use_token_level_filter=False, token_to_word="first")),
        ("context filter, rate 1", dict(filtered, rate=1.0)),
        (
            "context filter with added tokens",
            dict(filtered, rate=0.4, force_tokens=MARKS, drop_consecutive=True, force_reserve_digit=True),
        ),
        ("context filter of one context", dict(short, use_context_level_filter=True, rate=0.4)),
        ("context filter with an empty context", dict(filtered, context=[MEETING, "", MIXED])),
        ("beyond 512 tokens", {"context": [long], "rate": 0.3}),
        ("beyond 512 tokens, other ends", {"context": [long], "rate": 0.3, "chunk_end_tokens": ["?", "\n"], "force_tokens": MARKS}),
        ("beyond 512 tokens, no ends", {"context": [endless], "rate": 0.3}),
        ("beyond 512 tokens, kept", {"context": [endless], "rate": 1.0}),
        ("beyond 512 tokens, no such ends", {"context": [long, MEETING], "rate": 0.2, "chunk_end_tokens": []}),
        (
            "beyond 512 tokens, cut inside words",
            {"context": ["".join("ab%sfgehörigkeitsqufühlwb" % "xyz"[i % 3] * 3 + " " for i in range(36)), MEETING], "rate": 0.6,
             "use_context_level_filter": False, "return_word_label": True},
        ),
        ("no context, no filter", {"context": [], "use_context_level_filter": False}),
        ("no text", {"context": ""}),
        ("no text, target_token", {"context": [""], "target_token": 5}),
        ("no context", {"context": []}),
        ("white space", {"context": [" \n\t "], "return_word_label": True}),
        ("one word", {"context": "motion", "rate": 0.5}),
        ("one letter", {"context": ["a"], "rate": 0.5, "return_word_label": True}),
        ("a text of one unknown word", {"context": "龘", "rate": 0.5}),
        ("unknown words", {"context": "The 龘 motion ↯ of 龘龘 the council. x龘y", "rate": 0.7, "return_word_label": True}),
        ("unknown words, kept", {"context": "The 龘 motion ↯ of 龘龘 the council. x龘y", "rate": 1.0}),
        (
            "special tokens in the text",
            {"context": "<s> The motion </s> of <unk>the [SEP] council[PAD]votes <pad> on [CLS] <mask> item [MASK] it [UNK] "
             "is clear.", "rate": 0.7, "return_word_label": True},
        ),
        ("special tokens at the start", {"context": "[SEP]motion carries <s>motion carries", "rate": 0.7}),
        ("names of added tokens in the text", {"context": "The [NEW0] motion[NEW1] is [NEW7] clear [NEW100].", "rate": 0.6,
                                               "force_tokens": ["\n", "?"], "return_word_label": True}),
        ("hashes", {"context": "# Title ## The ### motion #42 a##b ##c", "rate": 0.7, "force_tokens": ["#"], "return_word_label": True}),
        ("punctuation in a row", {"context": "a() b[]; c.d./e <= \"f\" 'g' `h` \\i {j}=>k ▁ ▁l _m_ n_o", "rate": 0.7,
                                  "return_word_label": True}),
        ("cl100k's special token", {"context": "The <|endoftext|> motion", "rate": 0.5}),
        ("a language model's special token in a kept text", {"context": "The <|endoftext|> motion", "rate": 1.0}),
        ("contractions", {"context": "She isn't here; they've gone, I'm late, it's Ann's. Don ' t !", "rate": 0.8}),
    ]


def drawn(rng, words):
    """The arguments of a random call."""
    text_of = lambda count: "".join(
        (rng.choice(MARKS + ["the motion", "[SEP]", "<s>", "##", "[NEW1]", "'s", "1,234.5"]) if rng.random() < 0.18 else rng.choice(words))
        + rng.choice(["", " ", " ", " ", ". ", "\n"])
        for _ in range(count)
    )
    args = {"context": [text_of(rng.choice([2, 12, 30, 50])) for _ in range(rng.choice([1, 1, 1, 2, 3, 4]))]}
    if rng.random() < 0.02:
        args["context"] = [text_of(400)]
    maybe = lambda name, chance, make: args.update({name: make()}) if rng.random() < chance else None
    maybe("rate", 0.8, lambda: rng.choice([0.1, 0.2, 0.25, 0.33, 0.4, 0.5, 0.55, 0.6, 0.7, 0.75, 0.8, 0.9]))
    maybe("target_token", 0.25, lambda: rng.choice([5, 10, 25, 50, 120]))
    maybe("use_context_level_filter", 0.6, lambda: rng.random() < 0.8)
    maybe("use_token_level_filter", 0.1, lambda: rng.random() < 0.3)
    maybe("target_context", 0.15, lambda: rng.choice([0, 1, 2, 3]))
    maybe("context_level_rate", 0.2, lambda: rng.choice([0.3, 0.5, 0.7]))
    maybe("context_level_target_token", 0.15, lambda: rng.choice([20, 60, 100]))
    maybe("force_context_ids", 0.2, lambda: [rng.randrange(3)])
    maybe("return_word_label", 0.4, lambda: True)
    maybe("token_to_word", 0.4, lambda: rng.choice(["mean", "first"]))
    maybe("force_tokens", 0.6, lambda: rng.sample(MARKS + [",", "the motion", "#", "the", "1"], rng.choice([1, 2, 4, 6])))
    maybe("force_reserve_digit", 0.3, lambda: True)
    maybe("drop_consecutive", 0.4, lambda: True)
    maybe("chunk_end_tokens", 0.1, lambda: rng.choice([["\n"], [], ["?", "."]]))
    return args


def make_llmlingua2(out, cl100k):
    cache = tempfile.TemporaryDirectory()
    # The name under which tiktoken keeps it: the SHA-1 of its address.
    shutil.copy(cl100k, os.path.join(cache.name, "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"))
    os.environ["TIKTOKEN_CACHE_DIR"] = cache.name
    from llmlingua import PromptCompressor

    folders, compressors, noise = tempfile.TemporaryDirectory(), {}, {"generator": None}

    def disturb(_model, _inputs, output):
        if noise["generator"] is not None:
            output.logits = output.logits + 5e-6 * torch.randn(output.logits.shape, generator=noise["generator"])
        return output

    for model, name in NAMES.items():
        folder = pathlib.Path(folders.name) / name
        shutil.copytree(out / model, folder)
        compressors[model] = PromptCompressor(str(folder), device_map="cpu", use_llmlingua2=True)
        compressor = compressors[model]
        first = compressor.tokenizer.convert_tokens_to_ids("[NEW0]")
        added = compressor.model.get_input_embeddings().weight.data[first : first + 10].clone()
        save_file({"embeddings": added}, out / model / "added.safetensors")
        (out / model / "added.safetensors").chmod(0o644)
        compressor.model.register_forward_hook(disturb)

    def call(model, args, seed=None):
        noise["generator"] = None if seed is None else torch.Generator().manual_seed(seed)
        try:
            return {"result": compressors[model].compress_prompt(**json.loads(json.dumps(args)))}
        except Exception as error:
            return {"error": "%s: %s" % (type(error).__name__, error)}

    def row(name, model, args):
        """None where errors of 5e-6 in the logits change the outcome: that would test the order of sums."""
        outcome = call(model, args)
        stable = all(call(model, args, seed) == outcome for seed in range(3))
        return {"name": name, "model": model, "args": args, **outcome} if stable else None

    rows = []
    for name, args in named():
        for model in NAMES:
            rows.append(row(name, model, args))
            if rows[-1] is None:
                print("unstable, left out:", name, model, file=sys.stderr)
    rng, count, unstable = random.Random(11), 0, 0
    words = sorted({word for text in corpus() for word in text.split()})
    while count < 100:
        made = row("random %d" % count, list(NAMES)[count % 2], drawn(rng, words))
        if made is None:
            unstable += 1
        else:
            rows.append(made)
            count += 1
    print(unstable, "unstable random calls left out", file=sys.stderr)
    with open(out / "llmlingua2.jsonl", "w", encoding="utf-8") as file:
        for made in filter(None, rows):
            file.write(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    command, out = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "models":
        make_models(out)
    elif command == "modernbert":
        make_modernbert(out)
    elif command == "llmlingua2":
        make_llmlingua2(out, pathlib.Path(sys.argv[3]))
    else:
        sys.exit(__doc__)
