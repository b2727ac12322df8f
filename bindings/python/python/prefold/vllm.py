"""KV prefixes for vLLM (0.32): a connector that fills a request's first blocks from a file.

    vllm serve MODEL --kv-transfer-config '{
        "kv_connector": "PrefoldConnector", "kv_connector_module_path": "prefold.vllm",
        "kv_role": "kv_consumer", "kv_connector_extra_config": {"prefixes": "/folder"}}'

Where the package is installed the module path may be left out. `prefold export --to vllm P -o
/folder/NAME` prints what a request says: its prompt is `tokens` and after them the question's ids,
its `cache_salt` and `kv_transfer_params` go along as they are:

    {"prompt": tokens + question, "cache_salt": "...", "kv_transfer_params": {"prefix": "NAME"}}

`prefold.serving.request` makes such a body of a chat. The salt keeps blocks of this prefix from
requests whose prompts begin with the same ids but have none or another; a request without it fails.
So do one that names a file outside the folder, one of a model of other sizes, and one whose prompt
does not begin with `tokens` (or with one placeholder repeated) or has nothing after them.

What `kv_connector_extra_config` may hold:

- `prefixes`: a folder, or the URL of a store (`prefold.store`). A request names a file of the
  folder, or of a store or a folder in its layout `FINGERPRINT/CONTENT_ID`.
- `cache`: where files of a store are kept on this machine. The scheduler has them downloaded by
  threads of its own, and the request waits without holding up others; a worker on another machine
  downloads for itself, and its step waits.
- `fingerprint`: the model's, as `prefold inspect --json` tells it of a prefix. Prefixes of other
  models are refused; without it, whether the model is the one that made the prefix is not checked.
- `ready_bytes`: memory for tensors of the prefixes used last, in each worker (1 GiB; 0 for none).
"""

# pyright: standard, reportMissingImports=false

import contextlib
import json
import math
import os
import re
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import vllm
from safetensors import safe_open
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.logger import init_logger

from prefold._prefix_file import Header, PrefixError, path_of, read_header, stamp, tokens_of
from prefold.store import PrefixStore

Stats: Any = None
PromMetrics: Any = None
# Not every version takes them.
with contextlib.suppress(ImportError):
    from prefold._vllm_stats import PromMetrics, Stats

logger: Any = init_logger("vllm.prefold")

TESTED = ("0.32",)
"""Versions of vLLM that `tests/hosts/vllm_connector.py` has run with."""

READY_BYTES = 1 << 30
DOWNLOADS = 4

Pair = tuple[torch.Tensor, torch.Tensor]
"""K and V of a layer as the model takes them, `[rows, kv_heads of this rank, head_dim]`."""


@dataclass
class Load:
    """Rows of a prefix from `start` on, and the slots of the paged cache that they go to."""

    request: str
    name: Any
    start: int
    slots: list[int]
    blocks: list[int]
    error: str | None = None


@dataclass
class Loads(KVConnectorMetadata):
    """What the workers load in one step."""

    loads: list[Load] = field(default_factory=list[Load])


class Ready:
    """Tensors of the prefixes used last, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self._held: int = 0
        self._kept: OrderedDict[Any, dict[str, Pair]] = OrderedDict()

    def get(self, key: Any) -> dict[str, Pair] | None:
        """The layers of a file, by their numbers."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Any, layers: dict[str, Pair]) -> None:
        """Keeps them, and forgets those used longest ago."""
        self._kept[key] = layers
        self._held += nbytes(layers)
        while self._held > self.limit:
            self._held -= nbytes(self._kept.popitem(last=False)[1])


def nbytes(layers: dict[str, Pair]) -> int:
    """Bytes of all tensors."""
    return sum(each.nbytes for pair in layers.values() for each in pair)


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
        raise PrefixError(f"rope scaling {kind[:40]!a} is not known")
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


class Layers:
    """K and V of a prefix file, as this worker's layers take them."""

    def __init__(self, path: str, model: Any) -> None:
        self.header: Header = read_header(path)
        self._path = path
        self._model = model
        self._file: Any = None
        self._rank: int = get_tensor_model_parallel_rank()
        self._ranks: int = get_tensor_model_parallel_world_size()
        total = model.hf_text_config.num_hidden_layers
        if self.header.layers != total:
            raise PrefixError(f"the model has {total} layers, the prefix {self.header.layers}")

    def __enter__(self) -> "Layers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)

    def pair(self, number: str, layer: Any) -> Pair:
        """K and V of a layer, for this rank's heads, at the positions that they are to have."""
        if self._file is None:
            self._file = safe_open(self._path, "pt").__enter__()
        heads = self._model.get_total_num_kv_heads()
        key, value = (self._file.get_tensor(f"layers.{number}.{kv}") for kv in "kv")
        wanted = (heads, self.header.rows, layer.head_size)
        if tuple(key.shape) != wanted or key.shape != value.shape:
            raise PrefixError(f"K is {tuple(key.shape)}, the model's {wanted}")
        # Where there are more ranks than heads, as many neighbours have the same one.
        if (heads % self._ranks and self._ranks % heads) or layer.num_kv_heads != max(
            1, heads // self._ranks
        ):
            raise PrefixError(
                f"{heads} heads on {self._ranks} ranks with {layer.num_kv_heads} each: "
                "how they are laid out is not known"
            )
        first = self._rank * heads // self._ranks
        mine = slice(first, first + layer.num_kv_heads)
        key, value = key[mine], value[mine]
        # What follows is at the number of rows: a prefix with gaps moves with it.
        shift = self.header.rows - int(self.header.metadata["next_pos"])
        if shift:
            key = moved(key, shift, self.header.metadata)
        key, value = (
            each.transpose(0, 1).to(self._model.dtype).contiguous() for each in (key, value)
        )
        return key, value


class PrefoldConnector(KVConnectorBase_V1):
    """Reads only; a request without `kv_transfer_params["prefix"]` is left alone."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # Under "recompute" a prefix that does not load is computed from its placeholder ids.
        policy = getattr(self._kv_transfer_config, "kv_load_failure_policy", "fail")
        if policy != "fail":
            raise ValueError(f'kv_load_failure_policy is {policy!r}; it must be "fail"')
        parallel = vllm_config.parallel_config
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
            if getattr(parallel, name, 1) > 1:
                raise ValueError(f"{name} is {getattr(parallel, name)}; with prefixes it must be 1")
        extra = self._kv_transfer_config.get_from_extra_config
        prefixes = extra("prefixes", None)
        try:
            self._store = PrefixStore(prefixes or "", extra("cache", None))
        except PrefixError as error:
            raise ValueError(f"kv_connector_extra_config: {error}") from None
        # Plain names of files are for folders.
        self._folder: str | None = None
        if not self._store.remote:
            if not prefixes or not os.path.isdir(self._store.root):
                raise ValueError(
                    f"kv_connector_extra_config names no folder or store of prefixes: {prefixes}"
                )
            self._folder = os.path.realpath(self._store.root)
        self._fingerprint: str | None = extra("fingerprint", None)
        self._block_size = vllm_config.cache_config.block_size
        self._asked: dict[str, tuple[Any, int, int, str | None]] = {}
        self._downloads = ThreadPoolExecutor(DOWNLOADS, "prefold")
        self._downloading: dict[str, Future[str]] = {}
        self._waiting: dict[str, Future[str]] = {}
        self._loads: list[Load] = []
        self._failed: set[int] = set()
        self._ready = Ready(int(extra("ready_bytes", READY_BYTES)))
        self._stats: Any = None if Stats is None else Stats()
        if getattr(role, "name", "") == "SCHEDULER":
            version = getattr(vllm, "__version__", "")
            if not version.startswith(tuple(f"{tested}." for tested in TESTED)):
                logger.warning(
                    "prefold's connector was tested with vLLM %s, and this is %s",
                    ", ".join(TESTED),
                    version,
                )

    def _path(self, name: Any) -> str:
        if self._folder is not None and not (isinstance(name, str) and "/" in name):
            return path_of(self._folder, name)
        return self._store.path(name)

    def _count(self, **counts: float) -> None:
        if self._stats is not None:
            self._stats.add(counts)

    def _refuse_other_models(self, fingerprint: str | None) -> None:
        if self._fingerprint and fingerprint != self._fingerprint:
            raise PrefixError("another model made it than this server's `fingerprint` names")

    # In the scheduler.

    def _found(self, request_id: str, name: Any) -> str | None:
        """Path of a prefix, or None while it is downloaded."""
        if not self._store.remote:
            return self._path(name)
        path = self._store.cached(name)
        self._refuse_other_models(name.partition("/")[0])
        download = self._waiting.pop(request_id, None)
        if path is not None:
            return path
        # Requests that wait for a download fail with it; later ones try it anew.
        download = download or self._downloading.get(name)
        if download is None:
            download = self._downloading[name] = self._downloads.submit(self._store.path, name)
            download.add_done_callback(lambda _: self._downloading.pop(name, None))
        if download.done():
            return download.result()
        self._waiting[request_id] = download
        return None

    def _open(self, request: Any, name: Any) -> int | None:
        """Number of rows of the prefix that a request asks for, or None while it is downloaded."""
        path = self._found(request.request_id, name)
        if path is None:
            return None
        header = read_header(path)
        metadata, rows = header.metadata, header.rows
        self._refuse_other_models(metadata.get("model_fingerprint"))
        if request.cache_salt != metadata["content_id"]:
            raise PrefixError(f"cache_salt must be {metadata['content_id']}")
        if request.num_prompt_tokens <= rows:
            raise PrefixError(
                f"a prompt of {request.num_prompt_tokens} tokens has nothing after {rows}"
            )
        first = list((request.prompt_token_ids or ())[:rows])
        # One id repeated is a placeholder of the client's choice.
        if first != tokens_of(path) and len(set(first)) != 1:
            raise PrefixError("the prompt does not begin with the prefix's `tokens`")
        return rows

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Claims the rows of the prefix that a request asks for."""
        params = request.kv_transfer_params
        name = params.get("prefix") if isinstance(params, dict) else None
        if name is None:
            return 0, False
        error = None
        try:
            rows = self._open(request, name)
        # An exception here would end the engine, and with it all other requests.
        except Exception as reason:
            # All of the prompt is claimed, so that the load can fail and the request with it.
            rows, error = request.num_prompt_tokens - 1, f"{reason}" or type(reason).__name__
        if rows is None:
            # vLLM asks again in its next step.
            return None, False
        count = max(0, rows - num_computed_tokens)
        self._asked[request.request_id] = (name, num_computed_tokens, count, error)
        return count, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Notes which slots of the cache the claimed rows go to."""
        asked = self._asked.pop(request.request_id, None)
        if asked is None:
            return
        name, start, count, error = asked
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
        if error is not None:
            self._count(refusals=1)
        self._loads.append(Load(request.request_id, name, start, slots, blocks_of, error))

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Forgets a request that ended before its turn."""
        self._asked.pop(request.request_id, None)
        self._waiting.pop(request.request_id, None)
        return False, None

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Gives the workers what they load next."""
        loads, self._loads = self._loads, []
        return Loads(loads)

    # In the workers.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads all rows; those that fail are reported by their blocks."""
        made: Any = self._get_connector_metadata()
        for load in made.loads:
            error = load.error
            if error is None:
                try:
                    self._load(load, forward_context.no_compile_layers)
                except Exception as reason:
                    error = str(reason) or type(reason).__name__
                    self._count(refusals=1)
            if error is not None:
                logger.error("request %s: prefix: %s", load.request, error)
                self._failed.update(load.blocks)

    def _load(self, load: Load, layers: dict[str, Any]) -> None:
        begun = time.monotonic()
        path = self._path(load.name)
        try:
            hit, loaded = self._write(load, path, layers)
        except PrefixError:
            raise
        # A file that changed meanwhile, or is damaged, is one request's failure.
        except Exception as error:
            raise PrefixError(f"{os.path.basename(path)}: {error}") from error
        seconds = time.monotonic() - begun
        rows = len(load.slots)
        self._count(loads=1, rows=rows, bytes=loaded, seconds=seconds, ready_hits=hit)

    def _write(self, load: Load, path: str, layers: dict[str, Any]) -> tuple[bool, int]:
        """Writes the rows into the cache; whether they were ready, and their bytes."""
        key = stamp(path)
        ready = self._ready.get(key)
        pairs: dict[str, Pair] = ready or {}
        keep, loaded = ready is None and self._ready.limit > 0, 0
        part = slice(load.start, load.start + len(load.slots))
        with Layers(path, self._vllm_config.model_config) as file:
            if file.header.rows < part.stop:
                raise PrefixError(f"{os.path.basename(path)} has become shorter")
            for name, layer in layers.items():
                cache, number = getattr(layer, "kv_cache", None), re.search(r"\.(\d+)\.", name)
                if cache is None or number is None:
                    continue
                pair = pairs.get(number[1]) or file.pair(number[1], layer)
                if keep:
                    if cache.device.type == "cuda":
                        pair = (pair[0].pin_memory(), pair[1].pin_memory())
                    pairs[number[1]] = pair
                    if nbytes(pairs) > self._ready.limit:
                        keep, pairs = False, {}
                # The backend's own op knows the cache's layout and type.
                k, v = (each[part].to(cache.device, non_blocking=True) for each in pair)
                slots = torch.tensor(load.slots, dtype=torch.int64, device=cache.device)
                layer.impl.do_kv_cache_update(layer, k, v, cache, slots)
                loaded += k.nbytes + v.nbytes
        if keep:
            self._ready.put(key, pairs)
        return ready is not None, loaded

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

    def shutdown(self) -> None:
        """Starts no download any more."""
        self._downloads.shutdown(wait=False, cancel_futures=True)

    # What is counted, in both.

    def get_kv_connector_stats(self) -> Any:
        """Gives what was counted, once."""
        if Stats is None or self._stats.is_empty():
            return None
        stats, self._stats = self._stats, Stats()
        return stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        """Counts that came from another process."""
        return None if Stats is None else Stats(dict(data or {}))

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> Any:
        """Counters for ``/metrics``."""
        return None if PromMetrics is None else PromMetrics(*arguments)
