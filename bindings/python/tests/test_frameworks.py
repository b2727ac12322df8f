"""The classes for frameworks, against the real packages; skipped where one is not installed."""

import asyncio
import inspect
import pickle

import pytest

QUERY = "Who is the mayor?"
pytestmark = pytest.mark.filterwarnings("ignore")


def test_langchain(compressor, documents):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from prefold.integrations.langchain import PrefoldCompressor

    given = [
        Document(id=f"d{i}", page_content=text, metadata={"source": i, "score": i / 10})
        for i, text in enumerate(documents)
    ]
    work = PrefoldCompressor(compressor=compressor, rate=0.5)
    made = work.compress_documents(given, QUERY)
    ids = [document.id for document in made]
    assert ids == sorted(ids) and "d3" in ids
    assert sorted(work.dropped + [int(i[1:]) for i in ids]) == list(range(5))
    for document in made:
        place = int(document.id[1:])
        assert document.metadata["source"] == place
        assert document.metadata["score"] == place / 10
        for start, end in document.metadata["prefold"]["spans"]:
            assert documents[place][start:end].strip() in document.page_content
    assert given[3].metadata == {"source": 3, "score": 0.3}
    assert work.compress_documents([], QUERY) == []
    again = asyncio.run(work.acompress_documents(given, QUERY))
    assert [d.page_content for d in again] == [d.page_content for d in made]


def test_langchain_five_in_the_same_five_shorter_out(compressor, documents):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from prefold.integrations.langchain import PrefoldCompressor

    given = [Document(id=f"d{i}", page_content=text) for i, text in enumerate(documents)]
    work = PrefoldCompressor(
        compressor=compressor, rate=0.6, options={"per_context": True, "granularity": "sentence"}
    )
    made = work.compress_documents(given, QUERY)
    assert [document.id for document in made] == [f"d{i}" for i in range(5)] and not work.dropped
    pairs = list(zip([m.page_content for m in made], documents, strict=True))
    assert all(short and text.startswith(short) for short, text in pairs)
    # What is left of the question's budget may leave one of them whole.
    assert sum(len(short) < len(text) for short, text in pairs) >= 4


def test_langchain_tool_messages(compressor, documents):
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from prefold.integrations.langchain import ToolMessageCompressor

    long = "\n\n".join(text + f" Number {i}." for i in range(8) for text in documents)
    call = {"name": "search", "args": {}, "id": "c1"}
    messages = [
        HumanMessage(QUERY),
        AIMessage("", tool_calls=[call]),
        ToolMessage(long, tool_call_id="c1", id="t1"),
        ToolMessage("short", tool_call_id="c1"),
    ]
    work = ToolMessageCompressor(compressor, rate=0.3)
    made = work(messages)
    assert made[0] is messages[0] and made[1] is messages[1] and made[3] is messages[3]
    assert len(made[2].content) < len(long) / 2 and made[2].tool_call_id == "c1"
    assert "Ilse Brandt" in made[2].content
    again = work(made)
    assert again[2] is made[2]
    assert work.as_runnable().invoke(messages)[2].content == made[2].content
    assert work.before_model({"messages": messages}) == {"messages": [made[2]]}
    assert work.before_model({"messages": made}) is None


def test_langchain_agent(compressor, documents):
    pytest.importorskip("langchain.agents.middleware")
    from langchain.agents import create_agent
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.tools import tool
    from prefold.integrations.langchain import ToolMessageCompressor, middleware

    long = "\n\n".join(text + f" Number {i}." for i in range(8) for text in documents)

    @tool
    def search(query: str) -> str:
        """Searches."""
        return long

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools, **kwargs):
            return self

    call = {"name": "search", "args": {"query": "mayor"}, "id": "c1"}
    model = Model(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("Ilse Brandt.")]))
    agent = create_agent(
        model, [search], middleware=[middleware(ToolMessageCompressor(compressor, rate=0.3))]
    )
    state = agent.invoke({"messages": [("user", QUERY)]})
    (result,) = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert len(result.content) < len(long) / 2 and "Ilse Brandt" in result.content
    assert state["messages"][-1].content == "Ilse Brandt."


def test_llama_index(compressor, documents):
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from prefold.integrations.llama_index import PrefoldPostprocessor

    nodes = [
        NodeWithScore(node=TextNode(id_=f"n{i}", text=text, metadata={"page": i}), score=1 - i / 10)
        for i, text in enumerate(documents)
    ]
    work = PrefoldPostprocessor(compressor, rate=0.5)
    made = work.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    ids = [node.node.node_id for node in made]
    assert "n3" in ids and ids == sorted(ids)
    assert sorted(ids + work.dropped) == [f"n{i}" for i in range(5)]
    for node in made:
        place = int(node.node.node_id[1:])
        assert node.score == 1 - place / 10 and node.node.metadata["page"] == place
        assert "prefold" not in node.node.get_content(metadata_mode="llm")
    assert nodes[0].node.text == documents[0] and "prefold" not in nodes[0].node.metadata
    again = asyncio.run(work.apostprocess_nodes(nodes, query_bundle=QueryBundle(QUERY)))
    assert [node.node.node_id for node in again] == ids


def test_haystack(compressor, documents):
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline
    from prefold.integrations.haystack import PrefoldCompressor

    def component():
        return PrefoldCompressor(rate=0.5, model=compressor._settings[0], device="cpu")

    work = component()
    given = [
        Document(id=f"h{i}", content=text, score=i / 10, meta={"n": i})
        for i, text in enumerate(documents)
    ]
    made = work.run(documents=given, query=QUERY)
    ids = [document.id for document in made["documents"]]
    assert "h3" in ids and sorted(ids + made["dropped"]) == [f"h{i}" for i in range(5)]
    for document in made["documents"]:
        place = int(document.id[1:])
        assert document.score == place / 10 and document.meta["n"] == place
    assert PrefoldCompressor.from_dict(work.to_dict()).rate == 0.5
    pipeline = Pipeline()
    pipeline.add_component("compressor", component())
    # Newer versions load a class of another package only where it is named.
    trusted = {"allowed_modules": ["prefold.integrations.haystack"]}
    if "allowed_modules" not in inspect.signature(Pipeline.loads).parameters:
        trusted = {}
    again = Pipeline.loads(pipeline.dumps(), **trusted)
    out = again.run({"compressor": {"documents": given, "query": QUERY}})["compressor"]
    assert [document.id for document in out["documents"]] == ids


def test_batches_of_columns(compressor, documents):
    numpy = pytest.importorskip("numpy")
    from prefold.ray import Compress

    work = Compress(
        contexts="docs", question="q", rate=0.5, model=compressor._settings[0], device="cpu"
    )
    work = pickle.loads(pickle.dumps(work))
    column = numpy.empty(2, dtype=object)
    column[:] = [documents, documents[:2]]
    made = work({"docs": column, "q": numpy.array([QUERY, "Where is the school?"], dtype=object)})
    want = compressor.compress(documents, question=QUERY, rate=0.5)
    assert made["compressed"][0] == want.text and made["compressed_kept"][0] == want.kept
    assert made["compressed_error"][0] is None
    with pytest.raises(ValueError, match="'q'"):
        work({"docs": column})


def test_arrow(compressor, documents):
    pyarrow = pytest.importorskip("pyarrow")
    from prefold.ray import Compress

    work = Compress(contexts="docs", rate=2.0, on_error="null", model=compressor._settings[0])
    table = work(pyarrow.table({"docs": [documents, ["a"]]}))
    assert table.column("compressed").null_count == 2
    assert "rate" in table.column("compressed_error")[0].as_py()
    raising = Compress(contexts="docs", rate=2.0, model=compressor._settings[0])
    with pytest.raises(ValueError, match="rate"):
        raising(pyarrow.table({"docs": [documents]}))


def test_pandas(compressor, documents):
    pandas = pytest.importorskip("pandas")
    from prefold.ray import pandas_udf

    frame = pandas.DataFrame({"docs": [documents, documents[:2]], "n": [1, 2]})
    udf = pandas_udf(contexts="docs", rate=0.5, model=compressor._settings[0], device="cpu")
    (made,) = udf([frame])
    assert list(made["n"]) == [1, 2]
    assert made["compressed"][0] == compressor.compress(documents, rate=0.5).text
