"""Load on `prefold serve`: latency it adds, memory, and tokens per second beside `prefold batch`.

Usage: load.py PREFOLD MODEL [--seconds 60] [--connections 32] [--rounds 2] [--record FILE]
Needed: wrk and node. The bare upstream and the proxy before it take turns in one run.
"""

import argparse
import json
import os
import random
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
WORDS = (
    "the a keeper sailor lamp harbour letter bridge wall ship year winter oil glass door paper "
    "north wrote carried painted counted sold lost found measured before after under with without"
).split()


def text(seed, sentences):
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(8, 16))) for _ in range(sentences)]
    return " ".join(f"{line.capitalize()} {draw.randint(1, 9999)}." for line in lines)


def conversation(seed, sentences):
    """A question, a call and its result."""
    return {
        "model": "m",
        "temperature": 0.7,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What happened in the year {seed}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "read", "arguments": '{"page": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": text(seed, sentences)},
        ],
    }


def mixed():
    """Requests of which none waits for the model: too short, known, or no conversation."""
    lines = [("GET", "/v1/models", None)] * 2
    lines += [
        ("POST", "/v1/embeddings", {"model": "m", "input": text(900 + i, 20)}) for i in range(2)
    ]
    lines += [("POST", "/v1/chat/completions", conversation(i, 4)) for i in range(6)]
    known = [("POST", "/v1/chat/completions", conversation(100 + i, 60)) for i in range(3)]
    long = {"model": "m", "messages": [{"role": "user", "content": text(7, 800)}]}
    return lines + known + [("POST", "/v1/chat/completions", long)], known


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url, body, timeout=600):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.headers, json.load(answer)


def wait(url, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"{url}: no answer in {seconds} s")


def resident(process):
    """KiB in memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))


def wrk(url, bodies, connections, seconds):
    """Latencies in ms, and errors."""
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "10s",
            "--latency",
            "-s",
            HERE / "mixed.lua",
            url,
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "BODIES": str(bodies)},
    ).stdout
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}
    latency = {
        f"p{share}": float(value) * scale[unit]
        for share, value, unit in re.findall(r"^\s+(50|90|99)%\s+([\d.]+)(us|ms|s)$", done, re.M)
    }
    requests = int(re.search(r"(\d+) requests in", done).group(1))
    socket_errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", done)))
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", done)
    return {
        **latency,
        "requests": requests,
        "errors": socket_errors + (int(other.group(1)) if other else 0),
    }


def overhead(args, base, upstream, server):
    requests, known = mixed()
    for _, path, body in known:
        post(base + path, body)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        for method, path, body in requests:
            file.write(f"{method}\t{path}\t{json.dumps(body) if body else ''}\n")
        file.flush()
        # Connections, threads and buffers are there before anything is measured.
        wrk(base, file.name, args.connections, 5)
        samples, done = [], threading.Event()

        def watch():
            while not done.wait(1):
                samples.append(resident(server))

        rounds = []
        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(args.rounds):
            # The order changes, so that a busy moment of the machine meets both sides.
            sides = [("bare", upstream), ("proxy", base)]
            rounds.append(
                {
                    name: wrk(url, file.name, args.connections, args.seconds)
                    for name, url in (sides if number % 2 == 0 else sides[::-1])
                }
            )
        done.set()
        watcher.join()
    median = lambda side, key: statistics.median(one[side][key] for one in rounds)
    added = {
        key: round(median("proxy", key) - median("bare", key), 3) for key in ("p50", "p90", "p99")
    }
    memory = {
        "first_kib": samples[0],
        "last_kib": samples[-1],
        "max_kib": max(samples),
        "min_kib": min(samples),
    }
    return {"rounds": rounds, "added_ms": added, "memory": memory}


def speed(args, base):
    """Tokens per second of the same prompts by `prefold batch` and by the server, in turns."""
    rows = [
        {"context": [text(5000 + i, 60)], "question": "What was sold in winter?", "rate": 0.5}
        for i in range(args.prompts)
    ]

    def batch():
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            for number, row in enumerate(rows):
                file.write(
                    json.dumps({"name": str(number), "call": "compress_prompt", "args": row}) + "\n"
                )
            file.flush()
            start = time.monotonic()
            out = subprocess.run(
                [args.prefold, "batch", "--model", args.model, "--device", args.device, file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            seconds = time.monotonic() - start
        results = [json.loads(line) for line in out.splitlines()]
        return sum(tokens(row) for row in results), seconds

    def tokens(row):
        found = row.get("result", row)
        return found["origin_tokens"]

    def served():
        start = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda row: post(f"{base}/v1/compress_prompt", row)[1], rows))
        return sum(tokens(answer) for answer in answers), time.monotonic() - start

    runs = {"batch": [], "serve": []}
    for number in range(3):
        for name, run in (("batch", batch), ("serve", served))[:: 1 if number % 2 == 0 else -1]:
            count, seconds = run()
            runs[name].append(round(count / seconds, 1))
    return {
        "tokens_per_second": runs,
        "serve_over_batch": round(
            statistics.median(runs["serve"]) / statistics.median(runs["batch"]), 3
        ),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prefold")
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument(
        "--delay", type=int, default=20, help="milliseconds until the upstream answers"
    )
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    ports = free_port(), free_port()
    upstream, base = (f"http://127.0.0.1:{port}" for port in ports)
    provider = subprocess.Popen(["node", HERE / "upstream.mjs", str(ports[0]), str(args.delay)])
    server = subprocess.Popen(
        [
            args.prefold,
            "serve",
            "--model",
            args.model,
            "--device",
            args.device,
            "--listen",
            f"127.0.0.1:{ports[1]}",
            "--upstream",
            upstream,
            "--deadline",
            "60s",
            "--call-deadline",
            "600s",
            "--log",
            "off",
        ]
    )
    try:
        wait(f"{base}/readyz")
        wait(upstream)
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "cpus": os.cpu_count(),
            "delay_ms": args.delay,
            "connections": args.connections,
            "seconds": args.seconds,
            "load_before": os.getloadavg()[0],
        }
        report["overhead"] = overhead(args, base, upstream, server)
        report["speed"] = speed(args, base)
    finally:
        server.terminate()
        code = server.wait(60)
        provider.terminate()
    assert code == 0, code
    print(json.dumps(report, indent=1))
    if args.record:
        args.record.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
