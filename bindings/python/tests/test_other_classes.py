"""The frameworks' own classes over llmlingua, unmodified, on `prefold.llmlingua.install`."""

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


def test_langchain(installed, model, documents):
    pytest.importorskip("langchain_community")
    from langchain_community.document_compressors import LLMLinguaCompressor
    from langchain_core.documents import Document

    work = LLMLinguaCompressor(model_name=model, device_map="cpu", target_token=60)
    assert isinstance(work.lingua, prefold.llmlingua.PromptCompressor)
    given = [Document(page_content=text, metadata={"n": i}) for i, text in enumerate(documents)]
    made = work.compress_documents(given, QUERY)
    assert made and any("Brandt" in document.page_content for document in made)
    assert sum(len(d.page_content) for d in made) < sum(len(text) for text in documents)


def test_llama_index(installed, model, documents):
    pytest.importorskip("llama_index.postprocessor.longllmlingua")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.longllmlingua import LongLLMLinguaPostprocessor

    work = LongLLMLinguaPostprocessor(model_name=model, device_map="cpu", target_token=60)
    nodes = [NodeWithScore(node=TextNode(text=text + "\n\n")) for text in documents]
    made = work.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    assert made and all(node.node.get_content() for node in made)
