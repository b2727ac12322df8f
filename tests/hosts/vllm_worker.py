#!/usr/bin/env python3
"""What `prefold.vllm` does in a worker, by vLLM's own classes, without a model or a server.

PYTHONPATH=.venv/vllm vllm_worker.py
"""

import functools
import http.server
import json
import os
import pickle
import sys
import tempfile
import threading
from types import SimpleNamespace

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../bindings/python/python"))

import prefold.vllm as module
import prometheus_client
import torch
from safetensors.torch import save_file
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorLogging,
    KVConnectorProm,
)

LAYERS, HEADS, ROWS, DIM = 3, 2, 5, 4
SLOTS = [7, 8, 9, 3, 4]


def write(folder, name, seed=0, next_pos=ROWS, **more):
    """A prefix file; its keys and values, `[layers][k or v]`."""
    torch.manual_seed(seed)
    pairs = [torch.randn(2, HEADS, ROWS, DIM) for _ in range(LAYERS)]
    tensors = {
        f"layers.{i}.{kv}": pair[j] for i, pair in enumerate(pairs) for j, kv in enumerate("kv")
    }
    metadata = {
        "format": "prefold-kv",
        "format_version": "1",
        "k_rope": "applied",
        "content_id": "c",
    }
    metadata |= {"next_pos": str(next_pos), "rope_dim": "4", "rope_theta": "10000"}
    metadata |= {"rope_scaling": json.dumps("none"), **more}
    save_file(
        {name: each.contiguous() for name, each in tensors.items()},
        os.path.join(folder, name + "~"),
        metadata,
    )
    os.replace(os.path.join(folder, name + "~"), os.path.join(folder, name))
    return pairs


class Worker:
    """A connector of one rank, and layers that keep what is written into their cache."""

    def __init__(self, folder, rank=0, ranks=1, **extra):
        module.get_tensor_model_parallel_rank = lambda: rank
        module.get_tensor_model_parallel_world_size = lambda: ranks
        model = SimpleNamespace(
            dtype=torch.bfloat16,
            hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS),
            get_total_num_kv_heads=lambda: HEADS,
        )
        self.config = SimpleNamespace(
            kv_transfer_config=KVTransferConfig(
                kv_connector="PrefoldConnector",
                kv_connector_module_path="prefold.vllm",
                kv_role="kv_consumer",
                kv_connector_extra_config={"prefixes": folder, **extra},
            ),
            cache_config=SimpleNamespace(block_size=4),
            parallel_config=SimpleNamespace(),
            model_config=model,
        )
        self.connector = module.PrefoldConnector(self.config, SimpleNamespace(name="WORKER"))
        self.wrote = {}
        self.layers = {}
        for i in range(LAYERS):
            self.layers[f"model.layers.{i}.attn"] = SimpleNamespace(
                kv_cache=torch.zeros(1),
                num_kv_heads=max(1, HEADS // ranks),
                head_size=DIM,
                impl=SimpleNamespace(do_kv_cache_update=self.keeper(i)),
            )

    def keeper(self, number):
        def keep(layer, key, value, cache, slots):
            self.wrote[number] = (key.clone(), value.clone(), slots.tolist())

        return keep

    def load(self, name, start=0):
        """Loads the rows from `start` on; the reason where it fails."""
        reasons = []
        module.logger = SimpleNamespace(error=lambda text, *values: reasons.append(text % values))
        self.wrote.clear()
        load = module.Load("r", name, start, SLOTS[start:], [1])
        self.connector.bind_connector_metadata(module.Loads([load]))
        self.connector.start_load_kv(SimpleNamespace(no_compile_layers=self.layers))
        assert self.connector.get_block_ids_with_load_errors() == ({1} if reasons else set())
        return reasons[0] if reasons else None

    def stats(self):
        made = self.connector.get_kv_connector_stats()
        return made and {**made.data, "seconds": 0}


def holds(worker, pairs, heads=slice(0, HEADS), start=0):
    for number, pair in enumerate(pairs):
        *got, slots = worker.wrote[number]
        assert slots == SLOTS[start:]
        for each, want in zip(got, pair, strict=True):
            want = want[heads, start:].transpose(0, 1).to(torch.bfloat16)
            assert each.shape == want.shape and torch.equal(each, want), number


def check_ready(folder):
    """Tensors of a file that stays the same are read once."""
    pairs = write(folder, "a")
    worker = Worker(folder)
    opened = []
    real = module.safe_open
    module.safe_open = lambda path, kind: (opened.append(os.path.basename(path)), real(path, kind))[
        1
    ]
    assert worker.load("a") is None
    holds(worker, pairs)
    nbytes = 2 * LAYERS * HEADS * ROWS * DIM * 2
    once = {"loads": 1, "rows": ROWS, "bytes": nbytes, "seconds": 0, "ready_hits": False}
    assert worker.stats() == once and worker.stats() is None
    assert worker.load("a", start=2) is None
    holds(worker, pairs, start=2)
    assert worker.stats()["ready_hits"] == 1 and opened == ["a"]
    pairs = write(folder, "a", seed=1)
    assert worker.load("a") is None
    holds(worker, pairs)
    assert opened == ["a", "a"]
    # Two fit: the one used longest ago goes.
    worker, opened[:] = Worker(folder, ready_bytes=2 * nbytes), []
    for name in "bc":
        write(folder, name)
    for name in "abacab":
        assert worker.load(name) is None
    assert opened == ["a", "b", "c", "b"], opened
    for limit in (0, nbytes - 1):
        worker, opened[:] = Worker(folder, ready_bytes=limit), []
        for _ in range(2):
            assert worker.load("a") is None
            holds(worker, pairs)
        assert opened == ["a", "a"] and worker.connector._ready._held == 0
    module.safe_open = real
    print("tensors are read once, and anew where the file is another")


def check_ranks(folder):
    """Each rank has the heads that vLLM's layers have there."""
    pairs = write(folder, "a")
    # As QKVParallelLinear of vLLM: with more ranks than heads neighbours have the same one.
    for ranks, owners in (
        (1, [(0, 2)]),
        (2, [(0, 1), (1, 2)]),
        (4, [(0, 1), (0, 1), (1, 2), (1, 2)]),
    ):
        for rank, (first, end) in enumerate(owners):
            worker = Worker(folder, rank, ranks)
            assert worker.load("a") is None
            holds(worker, pairs, slice(first, end))
    assert "is not known" in Worker(folder, 0, 3).load("a")
    print("1, 2 and 4 ranks of 2 heads have theirs")


def check_gaps(folder):
    """Keys of a prefix with gaps move to where their rows stand."""
    pairs = write(folder, "gaps", next_pos=ROWS + 3)
    worker = Worker(folder)
    for _ in range(2):
        assert worker.load("gaps") is None
        angles = -3.0 * torch.tensor([1.0, 0.01])
        for number, (keys, values) in enumerate(pairs):
            low, high = keys[..., :2], keys[..., 2:]
            rotated = (
                low * angles.cos() - high * angles.sin(),
                high * angles.cos() + low * angles.sin(),
            )
            key, value, _ = worker.wrote[number]
            assert torch.allclose(key.float(), torch.cat(rotated, -1).transpose(0, 1), atol=0.02)
            assert torch.equal(value, values.transpose(0, 1).to(torch.bfloat16))
    print("keys of a prefix with gaps move, also when they are ready")


def check_refusals(folder):
    """One request's failure says why, and counts."""
    write(folder, "a")
    worker = Worker(folder)
    with (
        open(os.path.join(folder, "a"), "rb") as whole,
        open(os.path.join(folder, "cut"), "wb") as cut,
    ):
        cut.write(whole.read()[:-8])
    assert "cut or damaged" in worker.load("cut")
    assert "No such file" in worker.load("none")
    worker.layers["model.layers.0.attn"].head_size = 8
    assert "the model's (2, 5, 8)" in worker.load("a")
    worker.config.model_config.hf_text_config.num_hidden_layers = 4
    assert "the model has 4 layers, the prefix 3" in worker.load("a")
    assert worker.stats() == {"refusals": 4, "seconds": 0}
    print("what does not fit is refused")


def check_store(folder):
    """A worker downloads what its machine lacks, once."""
    name = f"{'a' * 32}/{'c' * 64}"
    root = os.path.join(folder, "store")
    os.makedirs(os.path.join(root, "a" * 32))
    ids = {"model_fingerprint": "a" * 32, "content_id": "c" * 64}
    pairs = write(root, name + ".safetensors", **ids)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        machines = [os.path.join(folder, f"machine-{number}") for number in range(2)]
        for cache in machines * 2:
            worker = Worker(url, cache=cache)
            assert worker.load(name) is None
            holds(worker, pairs)
        assert len(asked) == len(machines)
        assert "404" in worker.load(f"{'a' * 32}/{'d' * 64}")
        server.shutdown()
    print("a worker downloads what its machine lacks, once")


def check_stats(folder):
    """The log and the metrics of vLLM take the counts, from several workers."""
    write(folder, "a")
    worker = Worker(folder)
    assert worker.load("a") is None and worker.load("a") is None
    first = worker.connector.get_kv_connector_stats()
    worker.load("none")
    both = first.aggregate(pickle.loads(pickle.dumps(worker.connector.get_kv_connector_stats())))
    data = pickle.loads(pickle.dumps(both.data))
    lines = []
    log = KVConnectorLogging(worker.config.kv_transfer_config)
    prom = KVConnectorProm(worker.config, ["model_name", "engine"], {0: ["m", "0"]})
    for _ in range(2):
        log.observe(data)
        prom.observe(data)
    log.log(lambda text, *values: lines.append(text % values))
    log.log(lambda text, *values: lines.append(text % values))
    (line,) = lines
    assert "prefix loads=4, prefix rows=20" in line and "prefix refusals=2" in line, line
    page = prometheus_client.generate_latest().decode()
    assert 'vllm:prefold_prefix_rows_total{engine="0",model_name="m"} 20.0' in page
    assert 'vllm:prefold_prefix_ready_hits_total{engine="0",model_name="m"} 2.0' in page
    assert 'vllm:prefold_prefix_refusals_total{engine="0",model_name="m"} 2.0' in page
    print(line)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for check in (
            check_ready,
            check_ranks,
            check_gaps,
            check_refusals,
            check_store,
            check_stats,
        ):
            check(folder)
    print("all passed")


if __name__ == "__main__":
    main()
