"""What all frameworks share: texts in, the same texts shorter out, by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefold._compressor import Compressor
from prefold._result import KeptContext, Result


@dataclass(frozen=True)
class Shorter:
    """One compression of several documents."""

    kept: dict[int, KeptContext]
    dropped: list[int]
    result: Result


@dataclass(frozen=True)
class Budget:
    """How much is kept, and the other options of ``Compressor.compress``."""

    rate: float
    target_tokens: int | None
    options: dict[str, Any]

    def arguments(self, texts: Sequence[str], question: str) -> dict[str, Any]:
        """The arguments of a call: documents in their order, the question out of the result."""
        return {
            "keep_question": False,
            "reorder": "original",
            **self.options,
            "contexts": list(texts),
            "question": question,
            "rate": None if self.target_tokens is not None else self.rate,
            "target_tokens": self.target_tokens,
        }


def shorten(compressor: Compressor, texts: Sequence[str], question: str, budget: Budget) -> Shorter:
    """Compresses documents."""
    if not texts:
        return _nothing()
    return _shorter(compressor.compress(**budget.arguments(texts, question)), len(texts))


async def ashorten(
    compressor: Compressor, texts: Sequence[str], question: str, budget: Budget
) -> Shorter:
    """Compresses documents in a worker thread."""
    if not texts:
        return _nothing()
    result = await compressor.acompress(**budget.arguments(texts, question))
    return _shorter(result, len(texts))


def _nothing() -> Shorter:
    return Shorter({}, [], Result("", 0, 0, None, [], []))


def _shorter(result: Result, texts: int) -> Shorter:
    kept = {context.index: context for context in result.contexts if context.text.strip()}
    dropped = [index for index in range(texts) if index not in kept]
    return Shorter(kept, dropped, result)


def metadata(context: KeptContext, before: int) -> dict[str, Any]:
    """What is told about a shortened document, under one key."""
    return {
        "index": context.index,
        "spans": [list(span) for span in context.spans],
        "tokens": context.tokens,
        "characters_before": before,
    }
