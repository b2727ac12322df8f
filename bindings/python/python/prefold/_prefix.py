"""KV prefixes: keys and values of a few tokens in every layer, as arrays without a copy."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from prefold._library import library, translated

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
        """Reads a prefix file.

        Raises
        ------
        FileError, FormatError
            For a file that cannot be read, or is not a prefix.
        """
        return cls(translated(library().Prefix.open, os.fspath(path)))

    def save(self, path: str | os.PathLike[str], dtype: str = "f32") -> None:
        """Writes a prefix file, whole or not at all; ``dtype`` is f32, f16 or bf16."""
        translated(self._native.save, os.fspath(path), dtype)

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

    @property
    def origin(self) -> dict[str, Any]:
        """Which model made it, how, and of what text."""
        made: dict[str, Any] = json.loads(self._native.origin())
        return made

    def keys(self, layer: int) -> numpy.ndarray[Any, Any]:
        """Gives K of a layer, ``[kv_heads, tokens, head_dim]``, read-only and without a copy."""
        import numpy

        return numpy.asarray(self.tensor(layer))

    def values(self, layer: int) -> numpy.ndarray[Any, Any]:
        """Gives V of a layer, as `keys` does."""
        import numpy

        return numpy.asarray(self.tensor(layer, value=True))

    def tensor(self, layer: int, *, value: bool = False) -> _native.Tensor:
        """Gives K or V of a layer as an object of DLPack's protocol (1.0), without a copy.

        ``torch.from_dlpack``, ``jax.dlpack.from_dlpack`` and ``numpy.from_dlpack`` take it. Its
        memory must not be written.
        """
        made: _native.Tensor = translated(self._native.tensor, layer, value)
        return made

    def __repr__(self) -> str:
        return (
            f"Prefix(layers={self.layers}, kv_heads={self.kv_heads}, tokens={self.tokens}, "
            f"head_dim={self.head_dim}, next_pos={self.next_pos})"
        )
