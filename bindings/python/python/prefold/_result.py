"""What compression returns: plain data, picklable, shown by notebooks."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A stretch of the original prompt, in order.

    Attributes
    ----------
    text : str
        The stretch; all pieces joined give the original prompt.
    kept : bool
        Whether the result has it.
    nll : float or None
        Mean negative log-likelihood per token in nats, where it was scored.
    """

    text: str
    kept: bool
    nll: float | None = None


@dataclass(frozen=True)
class KeptContext:
    """What is left of one context.

    Attributes
    ----------
    index : int
        Its place among the contexts that were given, counted from 0.
    text : str
        What the result has of it.
    tokens : int
        Tokens of that text.
    spans : list of (int, int)
        Ranges of the context that were kept, in characters, ascending: ``context[start:end]``.
    """

    index: int
    text: str
    tokens: int
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(frozen=True)
class Result:
    """A compressed prompt.

    Attributes
    ----------
    text : str
        The shorter prompt: instruction, contexts and question joined by blank lines.
    tokens_before, tokens_after : int
        Tokens of the whole prompt, by ``count`` (OpenAI's cl100k_base by default).
    target : int or None
        The budget in tokens, where the mode keeps one.
    contexts : list of KeptContext
        What is left of each context, in the order of the result; dropped ones are absent.
    warnings : list of str
        What the caller should know, a line each.
    pieces : list of Piece
        The original prompt in order, with what was dropped.
    """

    text: str
    tokens_before: int
    tokens_after: int
    target: int | None
    contexts: list[KeptContext]
    warnings: list[str]
    pieces: list[Piece] = field(repr=False, default_factory=list[Piece])
    _llmlingua: dict[str, Any] = field(repr=False, default_factory=dict[str, Any])

    @property
    def kept(self) -> list[int]:
        """Indices of the contexts that were kept, in the order of the result."""
        return [context.index for context in self.contexts]

    @property
    def rate(self) -> float:
        """Share of the tokens that was kept; 1 of an empty prompt."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 1.0

    @property
    def tokens_saved(self) -> int:
        """Tokens that the target model does not have to read."""
        return self.tokens_before - self.tokens_after

    def usage_dict(self) -> dict[str, Any]:
        """The dictionary that ``llmlingua`` returns, with its six keys."""
        return dict(self._llmlingua)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """The original prompt for a notebook: dropped text is struck through and grey."""
        parts: list[str] = []
        # Words that are shown alike are one element.
        for (kept, nll), alike in groupby(self.pieces, key=lambda piece: (piece.kept, piece.nll)):
            shown = html.escape("".join(piece.text for piece in alike))
            title = f' title="{nll:.2f} nats"' if nll is not None else ""
            if kept:
                parts.append(f"<span{title}>{shown}</span>")
            else:
                parts.append(f'<s style="opacity:.45"{title}>{shown}</s>')
        head = (
            f"<b>{self.tokens_before}</b> &rarr; <b>{self.tokens_after}</b> tokens "
            f"({self.rate:.1%} kept)"
        )
        body = "".join(parts) or html.escape(self.text)
        return (
            '<div style="font-family:sans-serif;font-size:90%">'
            f"{head}"
            '<div style="white-space:pre-wrap;max-height:30em;overflow:auto;'
            'border:1px solid #8884;padding:.5em;margin-top:.3em">'
            f"{body}</div></div>"
        )


@dataclass(frozen=True)
class Decision:
    """What was decided about one text of a conversation.

    Attributes
    ----------
    message : int or None
        The message's place in the conversation, counted from 0; none for a system prompt beside
        the messages.
    block : int or None
        The block's place in the message, where its content is a list.
    role : str
        Who it is from.
    content : str
        What it is.
    why : str
        Why it was shortened or not.
    before, after : int
        Its tokens.
    """

    message: int | None
    block: int | None
    role: str
    content: str
    why: Any
    before: int
    after: int


@dataclass(frozen=True)
class MessagesResult:
    """A conversation with shorter texts, otherwise what was given.

    Attributes
    ----------
    messages : list, dict, str or bytes
        What was given, with only the shortened strings changed.
    tokens_before, tokens_after : int
        Tokens of all texts.
    decisions : list of Decision
        What was decided, text by text.
    """

    messages: Any
    tokens_before: int
    tokens_after: int
    decisions: list[Decision]


@dataclass(frozen=True)
class JsonResult:
    """A shorter JSON object.

    Attributes
    ----------
    value : dict or str
        The object, or its JSON where JSON was given.
    tokens_before, tokens_after : int
        Tokens of its JSON.
    warnings : list of str
        What the caller should know, a line each.
    """

    value: Any
    tokens_before: int
    tokens_after: int
    warnings: list[str]
    _llmlingua: dict[str, Any] = field(repr=False, default_factory=dict[str, Any])

    def usage_dict(self) -> dict[str, Any]:
        """The dictionary that ``llmlingua`` returns, with its six keys."""
        return {**self._llmlingua, "compressed_prompt": self.value}
