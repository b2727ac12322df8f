"""Makes quants.safetensors: random blocks of every element type, and the floats that they stand for.

    pip install gguf==0.19.0 safetensors numpy && python make_quants.py

The reference is the Python package of ggml, `gguf.quants.dequantize`. For each type there are two
tensors, `<type>.bytes` (U8) and `<type>.f32`. All bits are random but those of the half-precision
scales, which are kept finite, subnormals and both signs included.
"""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.numpy import save_file

BLOCKS = 8
# Byte offsets of the halves in a block.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}

rng = np.random.default_rng(20240613)


def finite_halves(count):
    halves = rng.integers(0, 1 << 16, count, dtype=np.uint16)
    special = halves & 0x7C00 == 0x7C00
    halves[special] &= 0x83FF  # infinities and NaNs become subnormals
    return halves


tensors = {}


def add(halves):
    for dtype, offsets in halves.items():
        _, size = GGML_QUANT_SIZES[dtype]
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for offset in offsets:
            blocks[:, offset : offset + 2] = finite_halves(BLOCKS).view(np.uint8).reshape(-1, 2)
        if dtype == Type.MXFP4:
            blocks[:4, 0] = [0, 1, 2, 255]
        data = blocks.reshape(1, -1)
        tensors[f"{dtype.name}.bytes"] = data.ravel()
        tensors[f"{dtype.name}.f32"] = dequantize(data, dtype).ravel()


add(HALVES)

halves = np.concatenate([np.array([0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7BFF], np.uint16), finite_halves(505)])
brains = rng.integers(0, 1 << 16, 512, dtype=np.uint16)
brains[brains & 0x7F80 == 0x7F80] &= 0xFF80  # no NaNs: their bits are nobody's promise
floats = rng.standard_normal(512).astype(np.float32)
for dtype, values in [(Type.F16, halves), (Type.BF16, brains), (Type.F32, floats)]:
    data = values.view(np.uint8).reshape(1, -1)
    tensors[f"{dtype.name}.bytes"] = data.ravel()
    tensors[f"{dtype.name}.f32"] = dequantize(data, dtype).ravel()

# Last, so that the values above stay as they are.
add(
    {
        Type.Q2_K: [80, 82],
        Type.Q3_K: [108],
        Type.IQ4_NL: [0],
        Type.IQ4_XS: [0],
        Type.MXFP4: [],
    }
)

save_file(tensors, pathlib.Path(__file__).with_name("quants.safetensors"))
