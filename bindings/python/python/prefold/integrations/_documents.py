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


def shorten(
    compressor: Compressor,
    texts: Sequence[str],
    question: str,
    *,
    rate: float | None,
    target_tokens: int | None,
    instruction: str = "",
    **options: Any,
) -> Shorter:
    """Compresses documents in their given order, the question out of the result."""
    options.setdefault("keep_question", False)
    options.setdefault("reorder", "original")
    result = compressor.compress(
        list(texts),
        question=question,
        instruction=instruction,
        rate=rate,
        target_tokens=target_tokens,
        **options,
    )
    kept = {context.index: context for context in result.contexts if context.text}
    dropped = [index for index in range(len(texts)) if index not in kept]
    return Shorter(kept, dropped, result)


def metadata(context: KeptContext, before: int) -> dict[str, Any]:
    """What is told about a shortened document, under one key."""
    return {
        "index": context.index,
        "spans": [list(span) for span in context.spans],
        "tokens": context.tokens,
        "characters_before": before,
    }
