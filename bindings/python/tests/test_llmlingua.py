"""The drop-in: llmlingua's signature, and its results token for token."""

import importlib
import inspect
import sys

import pytest

import prefold
import prefold.llmlingua
from prefold.llmlingua import PromptCompressor

CALLS = ("compress_prompt", "structured_compress_prompt")


@pytest.fixture(scope="module")
def lingua(model):
    return PromptCompressor(model, device_map="cpu")


def test_golden_rows(lingua, golden):
    rows = [row for row in golden if row["call"] in CALLS]
    assert len(rows) > 20
    for row in rows:
        got = getattr(lingua, row["call"])(**row["args"])
        got.pop("contexts")
        assert got == row["result"], row["name"]


def test_signature_order():
    names = list(inspect.signature(PromptCompressor.compress_prompt).parameters)
    assert names[1:7] == [
        "context", "instruction", "question", "rate", "target_token", "iterative_size",
    ]
    first = list(inspect.signature(PromptCompressor.__init__).parameters)[1:7]
    assert first == [
        "model_name", "device_map", "model_config", "open_api_config", "use_llmlingua2",
        "llmlingua2_config",
    ]


def test_what_it_cannot_do_is_one_sentence(model):
    with pytest.raises(NotImplementedError, match="encoder"):
        PromptCompressor(model, use_llmlingua2=True)
    with pytest.warns(UserWarning, match="model_config"):
        PromptCompressor(model, model_config={"revision": "main"})


def test_errors(lingua):
    with pytest.raises(prefold.InputError, match="rate"):
        lingua.compress_prompt(["a"], rate=2)
    with pytest.raises(prefold.UnsupportedError, match="bge"):
        lingua.compress_prompt(["a"], question="b", rank_method="bge")


def test_exact_budget_under_its_names(model, documents):
    exact = PromptCompressor(model, device_map="cpu", budget="exact")
    got = exact.compress_prompt(documents, question="Who is the mayor?", target_token=60)
    assert got["compressed_tokens"] <= 60 and "Ilse Brandt" in got["compressed_prompt"]
    assert 3 in [context.index for context in got["contexts"]]


def test_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "llmlingua", raising=False)
    prefold.llmlingua.install()
    assert importlib.import_module("llmlingua").PromptCompressor is PromptCompressor
    found = importlib.import_module("llmlingua.prompt_compressor")
    assert found.PromptCompressor is PromptCompressor


def test_lengths_and_losses(lingua):
    text = "The quick brown fox."
    assert lingua.get_token_length(text, use_oai_tokenizer=True) == 5
    nll = lingua.get_ppl(text, "token")
    assert lingua.get_ppl(text) == pytest.approx(sum(nll) / len(nll))
    assert lingua.max_position_embeddings > 1000
