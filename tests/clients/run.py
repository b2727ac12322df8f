"""Clients that are not ours: the openai and anthropic SDKs, LiteLLM's proxy, an MCP client,
headroom's TypeScript SDK, a browser.

Usage: run.py PREFOLD MODEL [openai anthropic litellm mcp headroom page]
"""

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import provider

WHO = ["The keeper", "A sailor", "The mayor", "Her aunt", "The clerk", "A diver"]
DID = ["painted", "counted", "sold", "lost", "repaired", "measured"]
WHAT = ["the lamp", "nine boats", "an old map", "the bridge", "two bells", "the wall"]


def document(seed):
    draw = random.Random(seed)
    return " ".join(
        f"{draw.choice(WHO)} {draw.choice(DID)} {draw.choice(WHAT)} in {draw.randint(1800, 1999)}."
        for _ in range(60)
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(url, process, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{url}: the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"{url}: no answer in {seconds} s")


def openai_messages(seed):
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who painted the wall?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": document(seed)},
    ]


def check_tool(messages, given):
    """Only the tool's result is shorter."""
    assert len(messages) == len(given)
    for message, original in zip(messages, given):
        if original["role"] == "tool":
            assert 0 < len(message["content"]) < 0.85 * len(original["content"]), message
            assert message["tool_call_id"] == original["tool_call_id"]
        else:
            assert {k: message.get(k) for k in original} == original, (message, original)


def try_openai(base, upstream):
    import openai

    client = openai.OpenAI(base_url=f"{base}/v1", api_key="key-of-the-client", max_retries=0)
    given = openai_messages(1)
    whole = client.chat.completions.with_raw_response.create(model="m", messages=given)
    assert whole.headers["x-prefold-status"] == "compressed", dict(whole.headers)
    assert whole.parse().choices[0].message.content == "".join(provider.WORDS)
    path, headers, body = upstream.received[-1]
    assert path == "/v1/chat/completions" and headers["authorization"] == "Bearer key-of-the-client"
    check_tool(body["messages"], given)
    stream = client.chat.completions.create(model="m", messages=given, stream=True)
    words = [chunk.choices[0].delta.content for chunk in stream]
    assert [word for word in words if word] == provider.WORDS, words
    assert upstream.received[-1][2]["messages"] == body["messages"]


def try_anthropic(base, upstream):
    import anthropic

    client = anthropic.Anthropic(base_url=base, api_key="key", max_retries=0)
    given = [
        {"role": "user", "content": "Who sold the bridge?"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "read", "input": {"page": 1}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": document(2)}],
        },
    ]
    answer = client.messages.create(model="m", max_tokens=9, messages=given)
    assert answer.content[0].text == "".join(provider.WORDS)
    path, headers, body = upstream.received[-1]
    # Older versions of the SDK send the one header, newer ones the other.
    keys = headers.get("x-api-key"), headers.get("authorization")
    assert path.startswith("/v1/messages") and ("key" in keys or "Bearer key" in keys), headers
    assert body["messages"][:2] == given[:2]
    block, original = body["messages"][2]["content"][0], given[2]["content"][0]
    assert block["tool_use_id"] == "t1" and len(block["content"]) < 0.85 * len(original["content"])
    with client.messages.stream(model="m", max_tokens=9, messages=given) as stream:
        assert "".join(stream.text_stream) == "".join(provider.WORDS)
    assert upstream.received[-1][2]["messages"] == body["messages"]


def try_litellm(base, upstream):
    port = free_port()
    # LiteLLM refuses to start with a key that is widely known.
    key = f"sk-{secrets.token_hex(32)}"
    config = {
        "model_list": [
            {
                "model_name": "m",
                "litellm_params": {
                    "model": "openai/m",
                    "api_base": f"http://127.0.0.1:{upstream.server_address[1]}/v1",
                    "api_key": "k",
                },
            }
        ],
        "guardrails": [
            {
                "guardrail_name": "prefold",
                "litellm_params": {
                    "guardrail": "headroom",
                    "mode": "pre_call",
                    "api_base": base,
                    "default_on": True,
                },
            }
        ],
        "general_settings": {"master_key": key},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        # JSON is YAML.
        path.write_text(json.dumps(config))
        log = Path(folder, "log").open("w+")
        program = Path(sys.executable).with_name("litellm")
        process = subprocess.Popen(
            [program, "--config", path, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        try:
            wait(f"http://127.0.0.1:{port}/health/liveliness", process, 240)
            # LiteLLM itself holds back the newest turn and the calls of the newest answer.
            given = openai_messages(3) + [
                {"role": "assistant", "content": "The keeper did."},
                {"role": "user", "content": "And who sold the bridge?"},
            ]
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps({"model": "m", "messages": given}).encode(),
                {"content-type": "application/json", "authorization": f"Bearer {key}"},
            )
            with urllib.request.urlopen(request, timeout=120) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == "".join(
                    provider.WORDS
                )
            check_tool(upstream.received[-1][2]["messages"], given)
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)


def try_page(base, _upstream):
    if not (shutil.which("node") and shutil.which(os.environ.get("CHROMIUM", "chromium"))):
        print("page: skipped, node or chromium is not installed", flush=True)
        return
    script = Path(__file__).with_name("page.mjs")
    screenshot = [os.environ["SCREENSHOT"]] if "SCREENSHOT" in os.environ else []
    subprocess.run(
        ["node", "--experimental-websocket", script, base, *screenshot], check=True, timeout=300
    )


def try_headroom(base, _upstream):
    package = Path(sys.prefix, "node", "node_modules", "headroom-ai")
    if not (shutil.which("node") and package.exists()):
        print("headroom: skipped, node or its package is not installed", flush=True)
        return
    script = Path(__file__).with_name("headroom.mjs").resolve()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(openai_messages(6), file)
        file.flush()
        subprocess.run(
            ["node", script, base, file.name], check=True, timeout=120, cwd=package.parents[1]
        )


def try_mcp(_base, _upstream):
    import asyncio

    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def talk():
        program, model = sys.argv[1:3]
        parameters = StdioServerParameters(command=program, args=["mcp", "--model", model])
        async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            assert [tool.name for tool in (await session.list_tools()).tools] == [
                "compress",
                "retrieve",
                "stats",
            ]
            text = document(5)
            short = await session.call_tool(
                "compress", {"text": text, "question": "Who painted?", "rate": 0.4}
            )
            result = json.loads(short.content[0].text)
            assert 0 < len(result["text"]) < len(text), result
            original = await session.call_tool("retrieve", {"hash": result["hash"]})
            assert original.content[0].text == text

    asyncio.run(talk())


CLIENTS = {
    "openai": try_openai,
    "anthropic": try_anthropic,
    "litellm": try_litellm,
    "mcp": try_mcp,
    "headroom": try_headroom,
    "page": try_page,
}


def main():
    program, model, *names = sys.argv[1:]
    upstream = provider.start()
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            program,
            "serve",
            "--model",
            model,
            "--listen",
            f"127.0.0.1:{port}",
            "--log",
            "off",
            "--deadline",
            "60s",
            "--upstream",
            f"http://127.0.0.1:{upstream.server_address[1]}",
        ]
    )
    try:
        wait(f"{base}/readyz", server, 120)
        for name in names or CLIENTS:
            CLIENTS[name](base, upstream)
            print(f"{name}: ok", flush=True)
    finally:
        server.terminate()
        code = server.wait(60)
    assert code == 0, code


if __name__ == "__main__":
    main()
