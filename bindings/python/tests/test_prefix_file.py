"""Names and files that a client or another party may have made: each refusal is a PrefixError."""

import importlib
import json
import logging
import os
import queue
import struct
import sys
import threading
import types

import prefold
import pytest
from prefold._prefix_file import LONGEST_HEADER, PrefixError, path_of, read_header

METADATA = {
    "format": "prefold-kv",
    "format_version": "1",
    "k_rope": "applied",
    "content_id": "c",
    "next_pos": "3",
}


def write(path, metadata=METADATA, layer=None, head=None):
    header = {"__metadata__": metadata, "layers.0.k": layer or {"shape": [1, 3, 4]}}
    data = head if head is not None else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    return str(path)


def test_a_plain_name_is_a_path_in_the_folder(tmp_path):
    assert path_of(str(tmp_path), "a prefix.safetensors") == str(tmp_path / "a prefix.safetensors")
    assert path_of(str(tmp_path), "日本") == str(tmp_path / "日本")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\0b",
        "\ud800",
        "x\udfff",
        "../a",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "a\nb",
        "\x1b[2J",
        "\u202eabc",
        "x" * 256,
        "é" * 200,
        7,
        1.5,
        True,
        [],
        {},
        ["a"],
        b"a",
    ],
)
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(PrefixError):
        path_of(str(tmp_path), name)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    inside = tmp_path / "prefixes"
    inside.mkdir()
    write(tmp_path / "other")
    os.symlink(tmp_path / "other", inside / "link")
    with pytest.raises(PrefixError, match="not in the folder"):
        path_of(str(inside), "link")


def test_a_header_is_read(tmp_path):
    metadata, rows = read_header(write(tmp_path / "p"))
    assert (metadata, rows) == (METADATA, 3)


@pytest.mark.parametrize("missing", sorted(METADATA))
def test_missing_metadata_are_refused(tmp_path, missing):
    path = write(tmp_path / "p", {k: v for k, v in METADATA.items() if k != missing})
    with pytest.raises(PrefixError, match=r"^p: "):
        read_header(path)


@pytest.mark.parametrize(
    "change",
    [
        {"next_pos": "x"},
        {"next_pos": 3},
        {"format": ["prefold-kv"]},
        {"k_rope": "none"},
        {"rope_pairing": "interleaved"},
        {"content_id": None},
    ],
)
def test_odd_metadata_are_refused(tmp_path, change):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", {**METADATA, **change}))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"__metadata__": 3}',
        b'{"__metadata__": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1e999999",
        b"NaN",
    ],
)
def test_odd_headers_are_refused(tmp_path, head):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", head=head))


@pytest.mark.parametrize(
    "layer",
    [
        3,
        {"shape": []},
        {"shape": [1]},
        {"shape": [1, "3"]},
        {"shape": [1, 0]},
        {"shape": [1, -3]},
        {"shape": None},
        {"shape": {"1": 3}},
    ],
)
def test_odd_layers_are_refused(tmp_path, layer):
    with pytest.raises(PrefixError):
        read_header(write(tmp_path / "p", layer=layer))


def test_what_is_no_file_or_cut_short_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes(b"\1\0\0")
    (tmp_path / "long").write_bytes(struct.pack("<Q", LONGEST_HEADER + 1))
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**64 - 1))
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "short", "long", "huge", "folder", "missing"):
        # A reader that waits for a writer would never end.
        refused = queue.Queue()
        path = str(tmp_path / name)
        threading.Thread(target=refuse, args=(path, refused), daemon=True).start()
        assert "not" in refused.get(timeout=10) or name not in ("fifo", "folder"), name


def refuse(path, refused):
    with pytest.raises(PrefixError) as error:
        read_header(path)
    refused.put(str(error.value))


BLOCK = 16
PROMPT = 20_000
ROWS = 19_000
# What one step of vLLM takes of a long prompt: 8192 tokens.
FEW = list(range(5000, 5512))


@pytest.fixture
def connector(monkeypatch, tmp_path):
    """`PrefoldConnector` over a folder with one prefix, `valid`; vLLM and torch are stubs."""

    def stub(name, **names):
        module = types.ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)

    class Base:
        def __init__(self, vllm_config, role, kv_cache_config=None):
            self._kv_transfer_config = types.SimpleNamespace(
                get_from_extra_config=lambda key, default: str(tmp_path)
            )

        def _get_connector_metadata(self):
            return self.metadata

    stub("torch", Tensor=object)
    stub("safetensors", safe_open=None)
    stub("vllm")
    stub(
        "vllm.distributed",
        get_tensor_model_parallel_rank=lambda: 0,
        get_tensor_model_parallel_world_size=lambda: 1,
    )
    for name in ("", ".kv_connector", ".kv_connector.v1"):
        stub(f"vllm.distributed.kv_transfer{name}")
    stub(
        "vllm.distributed.kv_transfer.kv_connector.v1.base",
        KVConnectorBase_V1=Base,
        KVConnectorMetadata=object,
    )
    stub("vllm.logger", init_logger=logging.getLogger)
    # Set so that they are put back: what is imported over stubs must not outlive them.
    monkeypatch.setattr(prefold, "vllm", None, raising=False)
    monkeypatch.setitem(sys.modules, "prefold.vllm", None)
    del sys.modules["prefold.vllm"]
    module = importlib.import_module("prefold.vllm")
    write(tmp_path / "valid", layer={"shape": [1, ROWS, 4]})
    config = types.SimpleNamespace(cache_config=types.SimpleNamespace(block_size=BLOCK))
    return module.PrefoldConnector(config, None)


def loads_of(connector, name, held, computed=0, external=None):
    """What the workers are told of one request that holds the blocks `held`."""
    request = types.SimpleNamespace(
        request_id="r",
        kv_transfer_params={"prefix": name},
        num_prompt_tokens=PROMPT,
        cache_salt=METADATA["content_id"],
    )
    claimed, later = connector.get_num_new_matched_tokens(request, computed)
    assert not later
    blocks = types.SimpleNamespace(get_block_ids=lambda: (held,))
    given = claimed if external is None else external
    connector.update_state_after_alloc(request, blocks, given)
    return connector.build_connector_meta(None)


@pytest.mark.parametrize("external", [None, 0, len(FEW) * BLOCK])
@pytest.mark.parametrize("computed", [0, 40, len(FEW) * BLOCK - 1, len(FEW) * BLOCK, 18_000])
@pytest.mark.parametrize("name", ["a\0b", "\ud800", ["x"], "missing", "valid"])
def test_a_request_with_fewer_blocks_than_rows_fails_alone(connector, name, computed, external):
    made = loads_of(connector, name, FEW, computed, external)
    (load,) = made.loads
    assert load.error and load.slots == []
    # vLLM finds the request that fails by a block of its own.
    assert load.blocks and set(load.blocks) <= set(FEW)
    connector.metadata = made
    connector.start_load_kv(types.SimpleNamespace(no_compile_layers={}))
    assert connector.get_block_ids_with_load_errors() == set(load.blocks)


@pytest.mark.parametrize("computed", [0, 40, 18_999])
def test_a_request_with_a_block_for_every_row_gets_its_slots(connector, computed):
    # As many as it takes, and not in order.
    held = list(reversed(range(7, 7 + -(-ROWS // BLOCK))))
    (load,) = loads_of(connector, "valid", held, computed).loads
    assert load.error is None and load.start == computed
    rows = range(computed, ROWS)
    assert load.slots == [held[row // BLOCK] * BLOCK + row % BLOCK for row in rows]
    assert load.blocks == held[computed // BLOCK :]
    # One fewer is too few.
    (load,) = loads_of(connector, "valid", held[:-1], computed).loads
    assert load.error and load.slots == [] and set(load.blocks) <= set(held[:-1])
    assert load.blocks
