"""What `PrefoldConnector` tells vLLM's scheduler; vLLM and torch are stubs."""

import importlib
import logging
import sys
import threading
import time
import types

import prefold
import pytest
from test_store import CONTENT, MODEL, NAME, Web, absent, fill, prefix_bytes, whole

BLOCK = 16
PROMPT = 20_000
ROWS = 19_000
# What one step of vLLM takes of a long prompt: 8192 tokens.
FEW = list(range(5000, 5512))


@pytest.fixture
def connect(monkeypatch):
    """Makes a connector of its extra configuration."""

    def stub(name, **names):
        module = types.ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)

    class Base:
        def __init__(self, vllm_config, role, kv_cache_config=None):
            self._kv_transfer_config = types.SimpleNamespace(get_from_extra_config=vllm_config.get)

        def _get_connector_metadata(self):
            return self.metadata

    stub("torch", Tensor=object)
    stub("safetensors", safe_open=None)
    stub("vllm", __version__="0.32.1")
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
    made = []

    class Config(dict):
        cache_config = types.SimpleNamespace(block_size=BLOCK)
        parallel_config = types.SimpleNamespace(decode_context_parallel_size=1)

    def connect(**extra):
        config = Config(extra)
        made.append(
            module.PrefoldConnector(config, types.SimpleNamespace(name=extra.pop("role", "")))
        )
        return made[-1]

    connect.config = Config
    yield connect
    for each in made:
        each.shutdown()


@pytest.fixture
def connector(connect, tmp_path):
    """A connector over a folder with one prefix, `valid`."""
    (tmp_path / "valid").write_bytes(prefix_bytes(rows=ROWS))
    return connect(prefixes=str(tmp_path))


def asking(name, request_id="r", **changes):
    fields = dict(
        request_id=request_id,
        kv_transfer_params={"prefix": name},
        num_prompt_tokens=PROMPT,
        prompt_token_ids=[0] * PROMPT,
        cache_salt=CONTENT,
    )
    return types.SimpleNamespace(**{**fields, **changes})


def loads_of(connector, name, held, computed=0, external=None):
    """What the workers are told of one request that holds the blocks `held`."""
    request = asking(name)
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


def error_of(connector, name=NAME):
    return loads_of(connector, name, [1]).loads[0].error


def settled(connector, request):
    """What the scheduler is told once it is told anything."""
    for _ in range(500):
        claimed, later = connector.get_num_new_matched_tokens(request, 0)
        assert not later
        if claimed is not None:
            return claimed
        time.sleep(0.01)
    raise AssertionError("never")


def test_a_folder_has_plain_names_and_those_of_a_store(connect, tmp_path):
    fill(tmp_path)
    connector = connect(prefixes=str(tmp_path), fingerprint=MODEL)
    assert error_of(connector) is None
    assert "No such file" in error_of(connector, f"{'b' * 32}/{CONTENT}")
    (tmp_path / "plain").write_bytes(prefix_bytes(model="b" * 32))
    assert "another model" in error_of(connector, "plain")
    assert error_of(connect(prefixes=str(tmp_path)), "plain") is None


@pytest.mark.parametrize("name", ["", "../x", "plain", 7, ["x"], {}, NAME.upper()])
def test_other_names_of_a_store_are_refused(connect, tmp_path, name):
    web = Web()
    connector = connect(prefixes=web.url, cache=str(tmp_path))
    assert "does not name a prefix" in error_of(connector, name)
    assert web.asked == []


def test_the_scheduler_waits_for_no_network(connect, tmp_path):
    web, held = Web(), threading.Event()

    def slow(handler):
        held.wait(30)
        whole(prefix_bytes())(handler)

    web.answer = slow
    connector = connect(prefixes=web.url, cache=str(tmp_path))
    requests = [asking(NAME, f"r{i}") for i in range(3)]
    begun = time.monotonic()
    for _ in range(100):
        for request in requests:
            assert connector.get_num_new_matched_tokens(request, 0) == (None, False)
    # One that gives up leaves nothing.
    gone = asking(NAME, "gone")
    connector.get_num_new_matched_tokens(gone, 0)
    assert connector.request_finished(gone, []) == (False, None)
    assert time.monotonic() - begun < 5
    held.set()
    assert [settled(connector, request) for request in requests] == [3, 3, 3]
    assert len(web.asked) == 1 and connector._waiting == connector._downloading == {}


def test_a_failed_download_fails_who_waited_and_is_tried_anew(connect, tmp_path):
    web, held = Web(), threading.Event()

    def failing(handler):
        held.wait(30)
        absent(handler)

    web.answer = failing
    connector = connect(prefixes=web.url, cache=str(tmp_path))
    requests = [asking(NAME, f"r{i}") for i in range(3)]
    for request in requests:
        assert connector.get_num_new_matched_tokens(request, 0) == (None, False)
    held.set()
    # All of the prompt is claimed by a request that is to fail.
    assert [settled(connector, request) for request in requests] == [PROMPT - 1] * 3
    assert "404" in connector._asked["r0"][3] and len(web.asked) == 1
    web.answer = whole(prefix_bytes())
    assert settled(connector, asking(NAME, "later")) == 3


def test_prefixes_of_other_models_are_not_even_downloaded(connect, tmp_path):
    web = Web()
    connector = connect(prefixes=web.url, cache=str(tmp_path), fingerprint="b" * 32)
    assert "another model" in error_of(connector) and web.asked == []


def test_a_salt_of_another_prefix_is_refused(connect, tmp_path):
    fill(tmp_path)
    connector = connect(prefixes=str(tmp_path))
    assert settled(connector, asking(NAME, cache_salt=None)) == PROMPT - 1
    assert settled(connector, asking(NAME, num_prompt_tokens=3)) == 2
    assert settled(connector, asking(NAME)) == 3


def test_a_prompt_begins_with_the_tokens(connect, tmp_path):
    fill(tmp_path, data=prefix_bytes(ids=[5, 6, 7]))
    connector = connect(prefixes=str(tmp_path))
    for ids, rows in (([5, 6, 7, 8], 3), ([9, 9, 9, 8], 3), ([5, 6, 8, 8], 19_999), (None, 19_999)):
        assert settled(connector, asking(NAME, prompt_token_ids=ids)) == rows, ids


def test_what_cannot_work_is_refused_at_the_start(connect, tmp_path, monkeypatch, caplog):
    for prefixes in (None, "", str(tmp_path / "none"), "file:///none", "http://u:word@h:p/"):
        with pytest.raises(ValueError, match="kv_connector_extra_config") as error:
            connect(prefixes=prefixes)
        assert "word" not in str(error.value)
    monkeypatch.setattr(connect.config.parallel_config, "decode_context_parallel_size", 2)
    with pytest.raises(ValueError, match="decode_context_parallel_size is 2"):
        connect(prefixes=str(tmp_path))


def test_an_untested_version_is_told_once(connect, tmp_path, monkeypatch, caplog):
    for version, told in (("0.32.0", 0), ("0.32.1.dev3", 0), ("0.320.0", 1), ("0.33.0", 1)):
        monkeypatch.setattr(sys.modules["vllm"], "__version__", version)
        caplog.clear()
        connect(prefixes=str(tmp_path), role="WORKER")
        connect(prefixes=str(tmp_path), role="SCHEDULER")
        assert len(caplog.records) == told, version
