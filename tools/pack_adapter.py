"""Copies a trained adapter without what only training needs, its tensors in bf16.

    python3 tools/pack_adapter.py RUN FOLDER

RUN is a folder that `prefold train` made; FOLDER must not exist. Nothing but Python is needed.
"""

import json
import pathlib
import shutil
import struct
import sys

TENSORS = ["adapter_model.safetensors", "memory_embeddings.safetensors", "ae_embedding.safetensors"]
SETTINGS = ["adapter_config.json", "prefold.json"]


def to_bf16(f32):
    """Rounded to the nearest, ties to even."""
    out = bytearray(len(f32) // 2)
    for i, (bits,) in enumerate(struct.iter_unpack("<I", f32)):
        if bits & 0x7FFFFFFF > 0x7F800000:
            sys.exit("a value is NaN")
        struct.pack_into("<H", out, 2 * i, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    return bytes(out)


def pack(source, target):
    data = source.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, start = json.loads(data[8 : 8 + length]), 8 + length
    tensors, body = {}, b""
    for name, tensor in header.items():
        if name == "__metadata__":
            tensors[name] = tensor
            continue
        if tensor["dtype"] != "F32":
            sys.exit(f"{source}: {name} is {tensor['dtype']}, expected F32")
        begin, end = tensor["data_offsets"]
        values = to_bf16(data[start + begin : start + end])
        tensors[name] = {"dtype": "BF16", "shape": tensor["shape"], "data_offsets": [len(body), len(body) + len(values)]}
        body += values
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    run, folder = map(pathlib.Path, sys.argv[1:])
    if folder.exists():
        sys.exit(f"{folder} is there already")
    making = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in SETTINGS:
        shutil.copy(run / name, making)
    for name in TENSORS:
        if (run / name).exists():
            pack(run / name, making / name)
    making.rename(folder)


main()
