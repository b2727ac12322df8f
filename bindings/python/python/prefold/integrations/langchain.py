"""LangChain: a document compressor, and middleware that shortens tool results.

>>> from langchain_classic.retrievers import ContextualCompressionRetriever  # doctest: +SKIP
>>> from prefold.integrations.langchain import PrefoldCompressor  # doctest: +SKIP
>>> retriever = ContextualCompressionRetriever(
...     base_compressor=PrefoldCompressor(rate=0.5), base_retriever=base
... )  # doctest: +SKIP
"""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from pydantic import ConfigDict, Field, PrivateAttr

from prefold._compressor import Compressor, count_tokens
from prefold.integrations._documents import Budget, Shorter, ashorten, metadata, shorten

__all__ = ["PrefoldCompressor", "ToolMessageCompressor", "middleware"]


class PrefoldCompressor(BaseDocumentCompressor):
    """Shortens retrieved documents under one budget for all of them.

    Documents keep their ids, metadata and order; ``metadata["prefold"]`` tells which characters
    were kept. Documents of which nothing is left are dropped; `dropped` names the last call's.

    Parameters
    ----------
    compressor : prefold.Compressor, optional
        An open model; by default one is opened.
    rate : float
        Share of the tokens of all documents to keep.
    target_tokens : int, optional
        Tokens of all documents together, instead of a rate.
    options : dict
        All other options of ``Compressor.compress``.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    compressor: Compressor = Field(default_factory=Compressor)
    rate: float = 0.5
    target_tokens: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    _dropped: list[int] = PrivateAttr(default_factory=list)

    @property
    def dropped(self) -> list[int]:
        """Places of the documents that the last call dropped."""
        return self._dropped

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """Shortens documents against a query."""
        del callbacks
        texts = [document.page_content for document in documents]
        return self._made(documents, shorten(self.compressor, texts, query, self._budget()))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """Shortens documents against a query, in a worker thread."""
        del callbacks
        texts = [document.page_content for document in documents]
        made = await ashorten(self.compressor, texts, query, self._budget())
        return self._made(documents, made)

    def _budget(self) -> Budget:
        return Budget(self.rate, self.target_tokens, self.options)

    def _made(self, documents: Sequence[Document], made: Shorter) -> list[Document]:
        self._dropped = made.dropped
        return [
            document.model_copy(
                update={
                    "page_content": made.kept[place].text,
                    "metadata": {
                        **document.metadata,
                        "prefold": metadata(made.kept[place], len(document.page_content)),
                    },
                }
            )
            for place, document in enumerate(documents)
            if place in made.kept
        ]


class ToolMessageCompressor:
    """Shortens the results of tools in a list of messages, each once.

    A message that was shortened before is left as it is, so that what a provider has cached stays
    the same. Use it as a runnable in front of a chat model, or by `middleware` in an agent.

    Parameters
    ----------
    compressor : prefold.Compressor, optional
        An open model; by default one is opened.
    rate : float
        Share of a tool message's tokens to keep.
    min_tokens : int
        Messages of fewer tokens (cl100k) are left alone.
    options : dict, optional
        All other options of ``Compressor.compress``.
    """

    def __init__(
        self,
        compressor: Compressor | None = None,
        rate: float = 0.5,
        min_tokens: int = 300,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.compressor: Compressor = compressor or Compressor()
        self.rate = rate
        self.min_tokens = min_tokens
        self.options: dict[str, Any] = dict(options or {})

    def __call__(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Gives the messages with shorter tool results, ranked by the newest human message."""
        asked = [m for m in messages if isinstance(m, HumanMessage)]
        question = str(asked[-1].text) if asked else ""
        return [self._shorter(message, question) for message in messages]

    def _shorter(self, message: BaseMessage, question: str) -> BaseMessage:
        text = message.content
        done = "prefold" in message.response_metadata
        if not isinstance(message, ToolMessage) or not isinstance(text, str) or done:
            return message
        if count_tokens(text) < self.min_tokens:
            return message
        made = shorten(self.compressor, [text], question, Budget(self.rate, None, self.options))
        if not made.kept:
            return message
        told = {"tokens_before": made.result.tokens_before, "tokens": made.kept[0].tokens}
        return message.model_copy(
            update={
                "content": made.kept[0].text,
                "response_metadata": {**message.response_metadata, "prefold": told},
            }
        )

    def as_runnable(self) -> RunnableLambda[Sequence[BaseMessage], list[BaseMessage]]:
        """Gives a runnable to put in front of a chat model."""
        return RunnableLambda(self.__call__)

    def before_model(self, state: Any, runtime: Any = None) -> dict[str, Any] | None:
        """The hook of LangChain's agent middleware: the messages that became shorter."""
        del runtime
        before = list(state["messages"])
        after = self(before)
        changed = [new for old, new in zip(before, after, strict=True) if new is not old]
        return {"messages": changed} if changed else None


def middleware(compressor: ToolMessageCompressor | None = None) -> Any:
    """Gives agent middleware (LangChain 1.x) that shortens tool results before each model call.

    Parameters
    ----------
    compressor : ToolMessageCompressor, optional
        What shortens; by default one with its defaults.

    Returns
    -------
    langchain.agents.middleware.AgentMiddleware
    """
    from langchain.agents.middleware import before_model

    work = compressor or ToolMessageCompressor()

    @before_model
    def prefold_tool_messages(state: Any, runtime: Any) -> dict[str, Any] | None:
        return work.before_model(state, runtime)

    return prefold_tool_messages
