"""prefold's KV prefixes for Hugging Face transformers (4.57 and 5).

    # Of `prefold export --to transformers`, or any with rotated K.
    prefix = Prefix.open("p.safetensors")
    ids = generate(model, prefix, prompt_ids, max_new_tokens=50, do_sample=False)
    # Of a store that many machines share.
    prefix = Prefix.open(PrefixStore("s3://bucket/root").path("FINGERPRINT/CONTENT_ID"))
    # An ICAE's text, after its [AE].
    ids = generate(model, prefix, begin=beginning("adapter"), max_new_tokens=50)

The cache holds the prefix's rows, and the prompt continues at `prefix.next_pos`, which need not be
the number of rows: a pruned prefix has gaps. Whether the model is the one that made the prefix is
not checked; `prefix.metadata` names it.
"""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import safe_open
from transformers import DynamicCache


class Prefix:
    """Keys and values of every layer, `[1, kv_heads, tokens, head_dim]`, K rotated."""

    def __init__(
        self, keys: list[torch.Tensor], values: list[torch.Tensor], metadata: dict[str, str]
    ) -> None:
        self.keys: list[torch.Tensor] = keys
        self.values: list[torch.Tensor] = values
        self.metadata: dict[str, str] = metadata
        self.tokens: int = keys[0].shape[2]
        self.next_pos: int = int(metadata["next_pos"])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Prefix:
        """Reads a prefix file whose K is rotated."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "prefold-kv" or metadata.get("format_version") != "1":
                raise ValueError(f"{path}: not a prefix of prefold")
            if metadata["k_rope"] != "applied" or metadata.get("rope_pairing", "half") != "half":
                raise ValueError(
                    f"{path}: K is not rotated; run `prefold export --to transformers` on it"
                )
            layers = sum(name.endswith(".k") for name in list(file.keys()))
            keys = [file.get_tensor(f"layers.{layer}.k")[None] for layer in range(layers)]
            values = [file.get_tensor(f"layers.{layer}.v")[None] for layer in range(layers)]
        return cls(keys, values, metadata)

    def cache(self, model: Any) -> DynamicCache:
        """A fresh DynamicCache for one generation: it grows with what follows."""
        config = model.config
        wanted = (config.num_hidden_layers, config.num_key_value_heads)
        got = (len(self.keys), self.keys[0].shape[1])
        if wanted != got:
            raise ValueError(f"the model has {wanted} layers and heads, the prefix {got}")
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            key, value = (part.to(model.device, model.dtype).clone() for part in (key, value))
            cache.update(key, value, layer)
        return cache


@contextlib.contextmanager
def shifted(model: Any, shift: int) -> Iterator[None]:
    """While it lasts, `model.generate` gives every token a position `shift` higher."""
    prepare = model.prepare_inputs_for_generation

    # `generate` looks at the signature.
    @functools.wraps(prepare)
    def prepare_shifted(input_ids: Any, **kwargs: Any) -> Any:
        inputs = prepare(input_ids, **kwargs)
        given = inputs.get("input_ids")
        given = inputs["inputs_embeds"] if given is None else given
        positions = inputs.get("position_ids")
        if positions is None:
            start = inputs["past_key_values"].get_seq_length()
            positions = torch.arange(start, start + given.shape[1], device=given.device)[None]
        inputs["position_ids"] = positions + shift
        return inputs

    model.prepare_inputs_for_generation = prepare_shifted
    try:
        yield
    finally:
        del model.prepare_inputs_for_generation


def beginning(adapter: str | os.PathLike[str]) -> torch.Tensor | None:
    """The embedding that an adapter's texts begin with, `[hidden]` (ICAE's [AE]); None for BOS."""
    path = os.path.join(adapter, "ae_embedding.safetensors")
    if not os.path.exists(path):
        return None
    with safe_open(path, "pt") as file:
        return file.get_tensor("ae_embedding").flatten()


def generate(
    model: Any,
    prefix: Prefix,
    prompt_ids: Sequence[int] = (),
    begin: torch.Tensor | None = None,
    placeholder: int = 0,
    **options: Any,
) -> list[int]:
    """Ids that `model.generate(..., **options)` makes after the prefix and a prompt.

    The prompt is a list of ids, at least one, or in its place the embedding `begin`.
    """
    if begin is None:
        ids = torch.tensor([[placeholder] * prefix.tokens + list(prompt_ids)], device=model.device)
        inputs, mask, skip = {"input_ids": ids}, torch.ones_like(ids), ids.shape[1]
    else:
        # The rows of the prefix are in the cache: these are not read.
        rows = torch.zeros(prefix.tokens, begin.shape[0], device=model.device, dtype=model.dtype)
        rows = torch.cat((rows, begin[None].to(rows)))[None]
        # Without ids in front, what comes back is new.
        inputs, mask, skip = (
            {"inputs_embeds": rows},
            torch.ones(rows.shape[:2], dtype=torch.long, device=model.device),
            0,
        )
    with shifted(model, prefix.next_pos - prefix.tokens):
        made = model.generate(
            **inputs, attention_mask=mask, past_key_values=prefix.cache(model), **options
        )
    ids_made: list[int] = made[0, skip:].tolist()
    return ids_made
