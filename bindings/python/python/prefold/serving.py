"""What a client sends to a serving engine that reads prefixes; needs neither torch nor the engine.

>>> import json, subprocess
>>> from prefold.serving import request
>>> prefix = json.loads(subprocess.check_output(
...     "prefold export --to vllm p.safetensors -o prefixes/p".split()
... ))  # doctest: +SKIP
>>> question = [{"role": "user", "content": "Who pays?"}]
>>> body = request(prefix, question, tokenizer, model="m", max_tokens=99)  # doctest: +SKIP
>>> requests.post("http://localhost:8000/v1/completions", json=body)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefold._prefix_file import PrefixError, read_header, tokens_of
from prefold.store import PrefixStore

__all__ = ["of_store", "request"]

Message = Mapping[str, Any]


def of_store(store: PrefixStore, name: str) -> dict[str, Any]:
    """What a request says to have the prefix `name`: what ``prefold export --to vllm`` prints.

    Raises
    ------
    PrefixError
        See `PrefixStore.path`.
    """
    path = store.path(name)
    header = read_header(path)
    # An element of a row has two bytes or four: a claim alone must not make ids without end.
    if 2 * header.rows > header.size:
        raise PrefixError(f"{name}: its header claims {header.rows} rows of {header.size} bytes")
    return {
        "tokens": list(tokens_of(path)),
        "cache_salt": header.metadata["content_id"],
        "kv_transfer_params": {"prefix": name},
    }


def request(
    prefix: Mapping[str, Any],
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    covers: Sequence[Message] = (),
    route: str = "completions",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The body of a request to vLLM that continues a chat after a prefix.

    A prefix has the positions from 0 on, so its rows stand before all that the chat template
    writes. What they stand for decides what may follow:

    - the text of a document, or memory tokens: `covers` is empty, and the whole chat follows with
      all that its template begins with, which the model reads after the document;
    - the beginning of this chat: `covers` are the messages of which the prefix was made, by
      ``prefold prefill --ids`` of ``tokenizer.apply_chat_template(covers)``, with ``--keep`` or
      not. What follows is the rest of the chat, and the model reads what it would read of all.

    A prefix in the middle of a chat, as of the second message alone, there is not.

    Parameters
    ----------
    prefix : mapping
        What ``prefold export --to vllm`` printed, or `of_store` gives.
    messages : sequence of messages
        What comes after the prefix; the model answers the last one.
    tokenizer : transformers' tokenizer
        The served model's; its ``apply_chat_template`` is used.
    covers : sequence of messages
        The messages that the prefix stands for.
    route : {"completions", "chat"}
        Where it is sent: ``/v1/completions``, or ``/v1/chat/completions``, which answers with a
        message and reads calls of tools out of it. vLLM 0.32 takes ids in place of the messages
        there, where these are all text; a version that does not refuses the request.
    chat_template_kwargs : mapping, optional
        What the template is given beside the messages, as ``tools``.
    **options
        Further fields of the body, as ``model`` and ``max_tokens``.

    Raises
    ------
    ValueError
        The template writes the covered messages otherwise when more follow them; `route` is
        another one.
    """

    def ids(chat: Sequence[Message], answer: bool) -> list[int]:
        made: list[int] = tokenizer.apply_chat_template(
            [dict(message) for message in chat],
            add_generation_prompt=answer,
            tokenize=True,
            return_dict=False,
            **(chat_template_kwargs or {}),
        )
        return list(made)

    whole = ids([*covers, *messages], True)
    head = ids(covers, False) if covers else []
    if whole[: len(head)] != head:
        raise ValueError("the chat template writes `covers` otherwise when messages follow them")
    prompt = [*prefix["tokens"], *whole[len(head) :]]
    salt, params = prefix["cache_salt"], dict(prefix["kv_transfer_params"])
    if route == "completions":
        body: dict[str, Any] = {"prompt": prompt}
    elif route == "chat":
        body = {"messages": [dict(message) for message in (*covers, *messages)]}
        params["prompt_token_ids"] = prompt
    else:
        raise ValueError(f"route {route!r}: expected 'completions' or 'chat'")
    return {**options, **body, "cache_salt": salt, "kv_transfer_params": params}
