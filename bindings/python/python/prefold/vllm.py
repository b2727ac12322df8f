"""KV prefixes for vLLM (0.32): a connector that fills a request's first blocks from a file.

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "PrefoldConnector", "kv_connector_module_path": "prefold.vllm",
        "kv_role": "kv_consumer", "kv_connector_extra_config": {"prefixes": "/folder"}}'

Where the package is installed the module path may be left out. `prefold export --to vllm P -o
/folder/NAME` prints what a request says: its prompt is `tokens` and after them the question's ids,
its `cache_salt` and `kv_transfer_params` go along as they are:

    {"prompt": tokens + question, "cache_salt": "...", "kv_transfer_params": {"prefix": "NAME"}}

The salt keeps blocks of this prefix from requests whose prompts begin with the same ids but have
none or another; a request without it fails. So do one that names a file outside the folder, one of
a model of other sizes, and one whose prompt has nothing after the prefix. Whether the model is the
one that made the prefix is not checked.
"""

# pyright: standard, reportMissingImports=false

import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.logger import init_logger

from prefold._prefix_file import PrefixError, path_of, read_header

logger: Any = init_logger("vllm.prefold")


@dataclass
class Load:
    """Rows of a prefix from `start` on, and the slots of the paged cache that they go to."""

    request: str
    path: str
    start: int
    slots: list[int]
    blocks: list[int]
    error: str | None = None


@dataclass
class Loads(KVConnectorMetadata):
    """What the workers load in one step."""

    loads: list[Load] = field(default_factory=list[Load])


def frequencies(metadata: dict[str, str]) -> torch.Tensor:
    """Angles of one position, `[rope_dim / 2]`, in f64."""
    dim, theta = int(metadata["rope_dim"]), float(metadata["rope_theta"])
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scaling = json.loads(metadata["rope_scaling"])
    if scaling == "none":
        return plain
    ((kind, value),) = scaling.items()
    if kind == "linear":
        return plain / value["factor"]
    if kind == "factors":
        return plain / torch.tensor(value, dtype=torch.float64)
    if kind != "llama3":
        raise PrefixError(f"rope scaling {kind} is not known")
    low, high, original = (
        value["low_freq_factor"],
        value["high_freq_factor"],
        value["original_max_positions"],
    )
    smooth = ((original * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / value["factor"] + smooth * plain


def moved(keys: torch.Tensor, shift: int, metadata: dict[str, str]) -> torch.Tensor:
    """K, `[kv_heads, tokens, head_dim]`, rotated by `shift` positions more."""
    if "rope_theta" not in metadata:
        raise PrefixError(
            "a prefix with gaps, and the model's positions are learned: its keys cannot be moved"
        )
    angle = frequencies(metadata) * shift
    cos, sin = angle.cos(), angle.sin()
    low, high = keys.double().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class PrefoldConnector(KVConnectorBase_V1):
    """Reads only; a request without `kv_transfer_params["prefix"]` is left alone."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # Under "recompute" a prefix that does not load is computed from its placeholder ids.
        policy = getattr(self._kv_transfer_config, "kv_load_failure_policy", "fail")
        if policy != "fail":
            raise ValueError(f'kv_load_failure_policy is {policy!r}; it must be "fail"')
        folder = self._kv_transfer_config.get_from_extra_config("prefixes", None)
        if not folder or not os.path.isdir(folder):
            raise ValueError(f"kv_connector_extra_config names no folder of prefixes: {folder}")
        self._folder = os.path.realpath(folder)
        self._block_size = vllm_config.cache_config.block_size
        self._asked: dict[str, tuple[str, int, int, str | None]] = {}
        self._loads: list[Load] = []
        self._failed: set[int] = set()

    # In the scheduler.

    def _open(self, request: Any, name: Any) -> tuple[str, int]:
        """Path and number of rows of the prefix that a request asks for."""
        path = path_of(self._folder, name)
        metadata, rows = read_header(path)
        if request.cache_salt != metadata["content_id"]:
            raise PrefixError(f"cache_salt must be {metadata['content_id']}")
        if request.num_prompt_tokens <= rows:
            raise PrefixError(
                f"a prompt of {request.num_prompt_tokens} tokens has nothing after {rows}"
            )
        return path, rows

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Claims the rows of the prefix that a request asks for."""
        params = request.kv_transfer_params
        name = params.get("prefix") if isinstance(params, dict) else None
        if name is None:
            return 0, False
        path, error = "", None
        try:
            path, rows = self._open(request, name)
        # An exception here would end the engine, and with it all other requests.
        except Exception as reason:
            # All of the prompt is claimed, so that the load can fail and the request with it.
            rows, error = request.num_prompt_tokens - 1, f"{reason}" or type(reason).__name__
        count = max(0, rows - num_computed_tokens)
        self._asked[request.request_id] = (path, num_computed_tokens, count, error)
        return count, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Notes which slots of the cache the claimed rows go to."""
        asked = self._asked.pop(request.request_id, None)
        if asked is None:
            return
        path, start, count, error = asked
        if error is None and num_external_tokens != count:
            # As with prompt_logprobs, which have vLLM compute every row itself.
            error = f"vLLM loads {num_external_tokens} of the {count} rows that it was offered"
        if count == 0 and error is None:
            return
        (ids,) = blocks.get_block_ids()
        size = self._block_size
        first, last = start // size, max(start + count - 1, 0) // size
        if error is None and last >= len(ids):
            error = f"vLLM holds {len(ids)} blocks of {size} for {start + count} rows"
        slots = []
        if error is None:
            slots = [ids[at // size] * size + at % size for at in range(start, start + count)]
        # Any block of the request makes it fail. A long prompt may hold only its first ones so far.
        blocks_of = ids[first : last + 1] or ids[-1:]
        if not blocks_of:
            logger.error("request %s: prefix: no block to load it into", request.request_id)
        self._loads.append(Load(request.request_id, path, start, slots, blocks_of, error))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Gives the workers what they load next."""
        loads, self._loads = self._loads, []
        return Loads(loads)

    # In the workers.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads all rows; those that fail are reported by their blocks."""
        made: Any = self._get_connector_metadata()
        for load in made.loads:
            try:
                if load.error:
                    raise PrefixError(load.error)
                self._load(load, forward_context.no_compile_layers)
            except Exception as reason:
                logger.error("request %s: prefix: %s", load.request, reason)
                self._failed.update(load.blocks)

    def _load(self, load: Load, layers: dict[str, Any]) -> None:
        metadata, rows = read_header(load.path)
        if rows < load.start + len(load.slots):
            raise PrefixError(f"{os.path.basename(load.path)} has become shorter")
        shift = rows - int(metadata["next_pos"])
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        dtype = self._vllm_config.model_config.dtype
        part = slice(load.start, load.start + len(load.slots))
        total = self._vllm_config.model_config.hf_text_config.num_hidden_layers
        try:
            with safe_open(load.path, "pt") as file:
                if sum(name.endswith(".k") for name in list(file.keys())) != total:
                    raise PrefixError(f"the model has {total} layers, the prefix has not")
                for name, layer in layers.items():
                    cache, number = getattr(layer, "kv_cache", None), re.search(r"\.(\d+)\.", name)
                    if cache is None or number is None:
                        continue
                    key, value = (file.get_tensor(f"layers.{number[1]}.{kv}") for kv in "kv")
                    wanted = (layer.num_kv_heads * ranks, rows, layer.head_size)
                    if tuple(key.shape) != wanted or key.shape != value.shape:
                        raise PrefixError(f"K is {tuple(key.shape)}, the model's {wanted}")
                    # What follows is at the number of rows: a prefix with gaps moves with it.
                    key = moved(key, shift, metadata) if shift else key
                    heads = slice(rank * layer.num_kv_heads, (rank + 1) * layer.num_kv_heads)
                    # The backend's own op knows the cache's layout and type.
                    key, value = (
                        each[heads, part].transpose(0, 1).to(cache.device, dtype).contiguous()
                        for each in (key, value)
                    )
                    slots = torch.tensor(load.slots, dtype=torch.int64, device=cache.device)
                    layer.impl.do_kv_cache_update(layer, key, value, cache, slots)
        except PrefixError:
            raise
        # A file that changed meanwhile, or is damaged, is one request's failure.
        except Exception as error:
            raise PrefixError(f"{os.path.basename(load.path)}: {error}") from error

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Gives the blocks whose rows did not load, once."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is there when `start_load_kv` returns."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""
