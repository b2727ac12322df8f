"""KV prefixes: keys and values of a few tokens in every layer, as arrays without a copy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prefold._compressor import _module, _translated

if TYPE_CHECKING:
    import numpy

    from prefold import _native


class Prefix:
    """Keys and values that stand for a text.

    Attributes
    ----------
    layers, kv_heads, tokens, head_dim : int
        The shape: each layer holds ``[kv_heads, tokens, head_dim]`` twice.
    next_pos : int
        The position of the token after the prefix.
    content_id : str
        Identifies the content, whatever file it is in.
    """

    def __init__(self, native: _native.Prefix) -> None:
        self._native = native

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Prefix:
        """Reads a prefix file."""
        return cls(_translated(_module().Prefix.open, os.fspath(path)))

    def save(self, path: str | os.PathLike[str], dtype: str = "f32") -> None:
        """Writes a prefix file, whole or not at all; ``dtype`` is f32, f16 or bf16."""
        _translated(self._native.save, os.fspath(path), dtype)

    @property
    def layers(self) -> int:
        return self._native.layers

    @property
    def kv_heads(self) -> int:
        return self._native.kv_heads

    @property
    def tokens(self) -> int:
        return self._native.tokens

    @property
    def head_dim(self) -> int:
        return self._native.head_dim

    @property
    def next_pos(self) -> int:
        return self._native.next_pos

    @property
    def content_id(self) -> str:
        return self._native.content_id

    def keys(self, layer: int) -> numpy.ndarray[Any, Any]:
        """Gives K of a layer as a read-only array ``[kv_heads, tokens, head_dim]``, without a copy."""
        return self._array(layer, False)

    def values(self, layer: int) -> numpy.ndarray[Any, Any]:
        """Gives V of a layer, as `keys` does."""
        return self._array(layer, True)

    def _array(self, layer: int, value: bool) -> numpy.ndarray[Any, Any]:
        import numpy

        return numpy.asarray(_translated(self._native.tensor, layer, value))

    def __repr__(self) -> str:
        return (
            f"Prefix(layers={self.layers}, kv_heads={self.kv_heads}, tokens={self.tokens}, "
            f"head_dim={self.head_dim}, next_pos={self.next_pos})"
        )
