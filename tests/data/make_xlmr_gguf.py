#!/usr/bin/env python3
"""Makes golden/encoders/xlmr-gguf: a tiny random XLM-RoBERTa reranker in a GGUF as llama.cpp's converter writes it.

    make_xlmr_gguf.py OUT    # torch, transformers 4.46.3, tokenizers 0.20.3, gguf 0.19.0, sentencepiece 0.2.3, protobuf 7.36.2

OUT is the folder golden/encoders/xlmr-gguf. Run with OMP_NUM_THREADS=1: sums in another order change the last digits.

    sentencepiece.bpe.model   the Unigram model everything else begins with; it is trained only where it is not there
    reranker.gguf             weights and vocabulary, all that a reader of GGUF has
    golden.json               ids, hidden states and scores of transformers

The ids are those of XLMRobertaTokenizerFast, converted from the SentencePiece model. Where SentencePiece itself would give
others the script stops: such a text would test which of the two a reader follows.
"""

import json
import os
import pathlib
import sys
import tempfile
from io import BytesIO

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import gguf
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizerFast

from make_encoders import PAIRS, TEXTS, corpus, forward, randomise, rounded

PIECES = 600
POSITIONS = 64  # of tokens; XLM-R's first position is that after pad_token_id

# Texts for the rules below, for white space and for what the vocabulary lacks.
MORE = [
    "",
    " ",
    " \n\t\r\n ",
    "\tA tab\tin the\t\tmiddle\t",
    "two\nlines\r\nand\n\n\nmore\n",
    "  double  spaces   and a trailing one ",
    "non\u00a0breaking\u00a0 \u00a0space\u3000and\u3000\u3000the wide one\u3000",
    "Ｔｈｅ　ｌｉｇｈｔｈｏｕｓｅ，１８７４",
    "ﬁrst ﬁsh, oﬃce and conﬁne",
    "½ past 3, 2½ metres… and…",
    "light\u200bhouse \u200b of\u200b \u200bthe\u200bcity\u200b",
    "\u200b the city \u200b",
    "cafe\u0301 e\u0301te\u0301 E\u0301 e \u0301",
    "ძველი შუქურა",
    "The შუქურა of ཡིག, 54 m; x龘龘y 龘",
    "the▁city of▁▁the",
    "The harbour [PAD3] of <unknown> x_y",
]


# ---- the SentencePiece model


def rules():
    """A normalization as NFKC's in small: what it maps, by (what it maps it to). Keys of one character and of two, of one byte
    and of several, values that are shorter, longer and empty."""
    table = {space: " " for space in "\t\n\r\u00a0\u3000"}
    table.update({"ﬁ": "fi", "½": "1⁄2", "…": "...", "\u200b": "", "e\u0301": "é"})
    for first, last in ("０９", "ＡＺ", "ａｚ"):
        table.update({chr(code): chr(code - 0xFEE0) for code in range(ord(first), ord(last) + 1)})
    return table


def train():
    """The model's bytes. With XLM-R's ids of control tokens, which are SentencePiece's own."""

    def code_points(text):
        return " ".join("%X" % ord(char) for char in text)

    written = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rules.tsv"
        lines = [code_points(key) + "\t" + code_points(value) + "\n" for key, value in sorted(rules().items())]
        path.write_text("".join(lines), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=written, model_type="unigram", vocab_size=PIECES,
            # A third of the characters, each of them there about once, stay unknown.
            character_coverage=0.98, normalization_rule_tsv=str(path), add_dummy_prefix=True, remove_extra_whitespaces=True,
            num_threads=1, minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # the name of the temporary file
    return proto.SerializeToString()


# ---- the GGUF


def vocabulary(spm, size):
    """Tokens, scores and types as the converter's for XLM-R, in transformers' order: "<pad>" in second place moves all pieces
    by one. As there, nothing tells that the last one is "<mask>"."""
    tokens = [b"[PAD%d]" % id for id in range(size)]
    scores = [-10000.0] * size
    types = [gguf.TokenType.UNUSED] * size
    for id in range(spm.vocab_size()):
        tokens[id], scores[id], types[id] = spm.IdToPiece(id).encode("utf-8"), spm.GetScore(id), gguf.TokenType.NORMAL
        if spm.IsUnknown(id):
            types[id] = gguf.TokenType.UNKNOWN
        elif spm.IsControl(id):
            types[id] = gguf.TokenType.CONTROL
    control = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN]
    return [b"<s>", b"<pad>", b"</s>", b"<unk>"] + tokens[3:-1], [0.0] * 4 + scores[3:-1], control + types[3:-1]


def write_gguf(path, model, tokenizer, spm, proto):
    """The keys and tensors of convert_hf_to_gguf.py --outtype f32, in its order."""
    config = model.config
    skipped = config.pad_token_id + 1
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith("position_embeddings.weight"):
            tensor = tensor[skipped:]
        new = names.get_name(name.removeprefix("roberta."), try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new, tensor.contiguous().numpy())

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Xlmr Reranker")
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings - skipped)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_classifier_output_labels([label for _, label in sorted(config.id2label.items())])

    tokens, scores, types = vocabulary(spm, config.vocab_size)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    # Ids of special tokens, and which of them an encoder adds: gguf reads them out of the folder of the model.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, n_vocab=len(tokens))
    # This gguf no longer has a method for the first; files that older ones wrote have it.
    writer.add_uint32("tokenizer.ggml.cls_token_id", special.special_token_ids.pop("cls"))
    special.add_to_gguf(writer, quiet=True)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what transformers makes of it


def checked(tokenizer, spm, text):
    """The ids of `text`, which both tokenizers agree on."""
    ids = tokenizer(text)["input_ids"]
    # SentencePiece's unknown piece is 0 and transformers' is 3.
    own = [0] + [id + 1 if id else 3 for id in spm.EncodeAsIds(text)] + [2]
    if ids != own:
        sys.exit("transformers and SentencePiece differ in %r:\n%s\n%s" % (text, ids, own))
    return ids


def golden(model, tokenizer, spm):
    texts, pairs = [], []
    for i, text in enumerate(TEXTS + MORE):
        row = {"text": text, "ids": checked(tokenizer, spm, text)}
        if i < 3:
            assert len(row["ids"]) <= POSITIONS, text
            hidden = forward(model, row["ids"], None)[0]
            row["hidden"] = [[float("%.6g" % value) for value in vector] for vector in hidden.tolist()]
        texts.append(row)
    for question, passage in PAIRS:
        ids = tokenizer(question, passage)["input_ids"]
        assert len(ids) <= POSITIONS, question
        score = rounded(forward(model, ids, None)[1])[0]
        pairs.append({"question": question, "passage": passage, "ids": ids, "score": score})
    return {"texts": texts, "pairs": pairs}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sentencepiece.bpe.model"
    if not path.is_file():
        path.write_bytes(train())
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    spm = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = XLMRobertaTokenizerFast(vocab_file=str(path), model_max_length=POSITIONS)

    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=POSITIONS + 2, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, num_labels=1,
    )
    model = randomise(XLMRobertaForSequenceClassification(config), 9)

    write_gguf(out / "reranker.gguf", model, tokenizer, spm, proto)
    lines = ",\n".join(
        json.dumps(key) + ": [\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
        for key, rows in golden(model, tokenizer, spm).items()
    )
    (out / "golden.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
