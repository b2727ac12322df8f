"""LlamaIndex: a node postprocessor.

>>> from prefold.integrations.llama_index import PrefoldPostprocessor  # doctest: +SKIP
>>> engine = index.as_query_engine(
...     node_postprocessors=[PrefoldPostprocessor(rate=0.5)]
... )  # doctest: +SKIP
"""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from prefold._compressor import Compressor
from prefold.integrations._documents import Budget, Shorter, ashorten, metadata, shorten


class PrefoldPostprocessor(BaseNodePostprocessor):
    """Shortens the text of retrieved nodes under one budget for all of them.

    Nodes keep their ids, scores, metadata, relationships and order; nodes of which nothing is left
    are dropped, and `dropped` names the last call's by id.

    Parameters
    ----------
    compressor : prefold.Compressor, optional
        An open model; by default one is opened.
    rate : float
        Share of the tokens of all nodes to keep.
    target_tokens : int, optional
        Tokens of all nodes together, instead of a rate.
    options : dict
        All other options of ``Compressor.compress``.
    """

    rate: float = 0.5
    target_tokens: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    _compressor: Compressor = PrivateAttr()
    _dropped: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, compressor: Compressor | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self._compressor = compressor or Compressor()

    @classmethod
    def class_name(cls) -> str:
        return "PrefoldPostprocessor"

    @property
    def dropped(self) -> list[str]:
        """Ids of the nodes that the last call dropped."""
        return self._dropped

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts, query, budget = self._asked(nodes, query_bundle)
        return self._made(nodes, texts, shorten(self._compressor, texts, query, budget))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts, query, budget = self._asked(nodes, query_bundle)
        return self._made(nodes, texts, await ashorten(self._compressor, texts, query, budget))

    def _asked(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> tuple[list[str], str, Budget]:
        texts = [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        query = query_bundle.query_str if query_bundle else ""
        return texts, query, Budget(self.rate, self.target_tokens, self.options)

    def _made(
        self, nodes: list[NodeWithScore], texts: list[str], made: Shorter
    ) -> list[NodeWithScore]:
        self._dropped = [nodes[place].node.node_id for place in made.dropped]
        shorter = []
        for place, node in enumerate(nodes):
            if place not in made.kept:
                continue
            copy = node.node.model_copy(deep=True)
            copy.set_content(made.kept[place].text)
            copy.metadata["prefold"] = metadata(made.kept[place], len(texts[place]))
            copy.excluded_llm_metadata_keys = [*copy.excluded_llm_metadata_keys, "prefold"]
            copy.excluded_embed_metadata_keys = [*copy.excluded_embed_metadata_keys, "prefold"]
            shorter.append(NodeWithScore(node=copy, score=node.score))
        return shorter
