"""Haystack: a component for pipelines.

>>> from prefold.integrations.haystack import PrefoldCompressor  # doctest: +SKIP
>>> pipeline.add_component("compressor", PrefoldCompressor(rate=0.5))  # doctest: +SKIP
"""

# pyright: standard, reportMissingImports=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from prefold._compressor import Compressor
from prefold.integrations._documents import Budget, metadata, shorten


@component
class PrefoldCompressor:
    """Shortens documents under one budget for all of them; ids, scores, meta and order survive.

    Parameters
    ----------
    rate : float
        Share of the tokens of all documents to keep.
    target_tokens : int, optional
        Tokens of all documents together, instead of a rate.
    model, device, threads
        See ``prefold.Compressor``.
    options : dict, optional
        All other options of ``Compressor.compress``.
    """

    def __init__(
        self,
        rate: float = 0.5,
        target_tokens: int | None = None,
        model: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.rate = rate
        self.target_tokens = target_tokens
        self.model = model
        self.device = device
        self.threads = threads
        self.options: dict[str, Any] = dict(options or {})
        self.compressor: Compressor = Compressor(model, device=device, threads=threads)

    def warm_up(self) -> None:
        """Opens the model."""
        self.compressor.open()

    def to_dict(self) -> dict[str, Any]:
        """Gives what `from_dict` makes the component from."""
        made: dict[str, Any] = default_to_dict(
            self,
            rate=self.rate,
            target_tokens=self.target_tokens,
            model=self.model,
            device=self.device,
            threads=self.threads,
            options=self.options,
        )
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PrefoldCompressor:
        """Makes the component that `to_dict` described."""
        made: PrefoldCompressor = default_from_dict(cls, data)
        return made

    @component.output_types(documents=list[Document], dropped=list[str])
    def run(self, documents: list[Document], query: str = "") -> dict[str, Any]:
        """Shortens documents against a query.

        Returns
        -------
        dict
            ``documents``, and ``dropped``, the ids of documents of which nothing is left.
        """
        texted = [place for place, document in enumerate(documents) if document.content]
        made = shorten(
            self.compressor,
            [documents[place].content or "" for place in texted],
            query,
            Budget(self.rate, self.target_tokens, self.options),
        )
        kept = {texted[index]: context for index, context in made.kept.items()}
        shorter, dropped = [], []
        for place, document in enumerate(documents):
            if not document.content:
                shorter.append(document)
            elif place in kept:
                told = metadata(kept[place], len(document.content))
                shorter.append(
                    replace(
                        document,
                        content=kept[place].text,
                        meta={**document.meta, "prefold": told},
                    )
                )
            else:
                dropped.append(document.id)
        return {"documents": shorter, "dropped": dropped}
