"""The frameworks' own classes over llmlingua, unmodified, on `prefold.llmlingua.install`."""

import pathlib
import shutil
import sys

import prefold.llmlingua
import pytest

QUERY = "Who is the mayor?"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def installed(monkeypatch):
    for name in ("llmlingua", "llmlingua.prompt_compressor"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    prefold.llmlingua.install()
    yield
    for name in ("llmlingua", "llmlingua.prompt_compressor"):
        sys.modules.pop(name, None)


def test_langchain(installed, model, documents, monkeypatch):
    pytest.importorskip("langchain_community")
    from langchain_community.document_compressors import LLMLinguaCompressor
    from langchain_core.documents import Document

    work = LLMLinguaCompressor(model_name=model, device_map="cpu", target_token=60)
    assert isinstance(work.lingua, prefold.llmlingua.PromptCompressor)
    given = [Document(page_content=text, metadata={"n": i}) for i, text in enumerate(documents)]
    results = []
    compress = work.lingua.compress_prompt

    def recorded(*args, **options):
        results.append(compress(*args, **options))
        return results[-1]

    monkeypatch.setattr(work.lingua, "compress_prompt", recorded)
    made = work.compress_documents(given, QUERY)
    # It cuts the text by marks of its own, of which tokens may have been dropped.
    (result,) = results
    assert made and all(d.page_content and d.metadata["n"] in range(5) for d in made)
    assert all(d.page_content in result["compressed_prompt"] for d in made)
    assert result["compressed_tokens"] < result["origin_tokens"]


def test_llama_index(installed, model, documents):
    pytest.importorskip("llama_index.postprocessor.longllmlingua")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.longllmlingua import LongLLMLinguaPostprocessor

    # Its texts become one context; the reference shortens nothing that is short.
    documents = [f"{text} Page {i}." for i in range(6) for text in documents]
    work = LongLLMLinguaPostprocessor(model_name=model, device_map="cpu", target_token=200)
    nodes = [NodeWithScore(node=TextNode(text=text + "\n\n")) for text in documents]
    made = work.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    # It makes a node of every paragraph of the result, empty ones too.
    texts = [node.node.get_content() for node in made]
    assert any(texts) and sum(map(len, texts)) < sum(map(len, documents))


def test_llama_index_with_llmlingua2(installed, monkeypatch, tmp_path, documents):
    pytest.importorskip("llama_index.postprocessor.longllmlingua")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.longllmlingua import LongLLMLinguaPostprocessor
    from prefold.llmlingua import PromptCompressor

    # The class takes no other name; here a folder has it.
    name = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
    golden = pathlib.Path(__file__).resolve().parents[3] / "tests/data/golden/encoders"
    shutil.copytree(golden / "xlmr-tokens", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    work = LongLLMLinguaPostprocessor(
        model_name=name,
        device_map="cpu",
        use_llmlingua2=True,
        additional_compress_kwargs={"rate": 0.5},
    )
    nodes = [NodeWithScore(node=TextNode(text=text + "\n\n")) for text in documents]
    made = work.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    whole = "".join(text + "\n\n" for text in documents)
    lingua = PromptCompressor(name, device_map="cpu", use_llmlingua2=True)
    want = lingua.compress_prompt(whole, rate=0.5)
    assert [node.node.get_content() for node in made] == want["compressed_prompt"].split("\n\n")
    assert want["compressed_tokens"] < want["origin_tokens"]
