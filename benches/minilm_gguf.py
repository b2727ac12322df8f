"""Writes a BERT with WordPiece, as all-MiniLM-L6-v2, as a GGUF of F32: what llama.cpp's own converter writes.

    minilm_gguf.py FOLDER FILE

FOLDER is a Hugging Face folder with `model.safetensors`, `tokenizer.json` and sentence-transformers' `1_Pooling`. Needs gguf, numpy
and safetensors, which the environment of `make bench-reference` has.
"""

import json
import pathlib
import sys

import gguf
from safetensors.numpy import load_file

# BERT's own pooler: vectors are pooled otherwise, and the converter leaves it out too.
POOLER = "pooler."


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_settings(writer, config, pooling):
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    mean = pooling["pooling_mode_mean_tokens"]
    writer.add_pooling_type(gguf.PoolingType.MEAN if mean else gguf.PoolingType.CLS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_tokenizer(writer, tokenizer, config):
    ids = dict(tokenizer["model"]["vocab"])
    special = {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    names = {at: name for name, at in ids.items()}
    tokens, types = [], []
    for at in range(config["vocab_size"]):
        name = names[at]
        # The mark is where a word begins, not where one continues.
        if at not in special:
            name = name[2:] if name.startswith("##") else "▁" + name
        tokens.append(name)
        types.append(gguf.TokenType.CONTROL if at in special else gguf.TokenType.NORMAL)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    # The converter knows a tokenizer by a hash, and this one is that of several models.
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    # Between two texts only, which do not occur.
    writer.add_add_sep_token(False)
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", tokenizer["normalizer"]["lowercase"])


def write_tensors(writer, tensors, layers):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, tensor in tensors.items():
        if name.startswith(POOLER) or name.endswith("position_ids"):
            continue
        made = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if made is None:
            raise SystemExit(f"{name}: no such tensor in a BERT")
        writer.add_tensor(made, tensor.astype("float32"))


def main(folder, file):
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    writer = gguf.GGUFWriter(file, "bert")
    write_settings(writer, config, read_json(folder / "1_Pooling" / "config.json"))
    write_tokenizer(writer, read_json(folder / "tokenizer.json"), config)
    write_tensors(writer, load_file(folder / "model.safetensors"), config["num_hidden_layers"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
