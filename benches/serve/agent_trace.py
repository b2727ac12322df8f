"""An agent's trace through compressors: tokens, cost with and without prompt caching, and what a
model still answers.

Usage: agent_trace.py PREFOLD MODEL HOST [--headroom PYTHON] [--rates 0.5,0.33,0.2] [--record FILE]

The trace is made here: an agent reads logs, JSON, source code, matches in files, search results and
pages, and every result holds the answer to the question that was asked before it. PYTHON is an
interpreter that has the package headroom-ai.
"""

import argparse
import json
import random
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
NAMES = "atlas birch cobalt delta ember falcon garnet harbor indigo juniper kestrel lumen".split()
CITIES = "Aarhus Bergen Cadiz Dresden Esbjerg Faro Ghent Haarlem Izmir Jena Kotka Leiden".split()
# Of a million input tokens: as they are, written to a provider's cache, and read from it.
PRICE, WRITE, READ = 3.00, 3.75, 0.30


def log(draw, number):
    """Half an hour of a service; one line says why a payment failed."""
    bank = draw.choice(CITIES)
    payment = 80000 + number
    lines = []
    for _ in range(120):
        where = f"{draw.choice(NAMES)}-{draw.randint(1, 9)}"
        some, ms = draw.randint(10**6, 10**7), draw.randint(3, 90)
        kinds = [
            f"INFO  {where} request id={some} path=/v1/orders status=200 ms={ms}",
            f"DEBUG {where} cache hit key=session:{some}",
            f"INFO  {where} job nightly-{ms} finished rows={some % 9999}",
            f"WARN  {where} slow query table=orders ms={500 + ms}",
        ]
        lines.append(draw.choice(kinds))
    lines[draw.randrange(20, 100)] = (
        f"WARN  gateway-2 payment {payment} declined by the bank of {bank}, not retried"
    )
    stamped = [
        f"2026-03-{1 + number % 28:02d}T09:{i // 4:02d}:{15 * (i % 4):02d}Z {line}"
        for i, line in enumerate(lines)
    ]
    return (
        "\n".join(stamped),
        f"Which bank declined payment {payment}?",
        f"the bank of {bank}",
        "tail_log",
    )


def records(draw, number):
    """A list of orders; one of them is asked for."""
    orders = [
        {
            "id": f"A-{1000 + 50 * number + i}",
            "status": draw.choice(["open", "packed", "sent"]),
            "total": round(draw.uniform(5, 900), 2),
            "items": draw.randint(1, 9),
            "customer": {"name": draw.choice(NAMES).title(), "city": draw.choice(CITIES)},
            "note": draw.choice(
                ["", "Leave it at the door.", "Ring twice, the bell is quiet.", "A gift, no bill."]
            ),
        }
        for i in range(36)
    ]
    order = draw.choice(orders)
    order["carrier"] = f"{draw.choice(NAMES).title()} Parcel"
    return (
        json.dumps({"orders": orders, "next": None}, indent=1),
        f"Which carrier has order {order['id']}?",
        order["carrier"],
        "query_orders",
    )


def code(draw, number):
    """A module of small functions; one of them has the limit."""
    limit = draw.randint(11, 97)
    parts = ["import math\n\n"]
    for i in range(40):
        name = f"{draw.choice(NAMES)}_{draw.choice(NAMES)}_{i}"
        parts.append(
            f"def {name}(value, factor={draw.randint(1, 9)}):\n    scaled = value * factor\n"
            f"    return math.sqrt(scaled + {draw.randint(1, 99)})\n\n\n"
        )
    parts.insert(draw.randint(5, 35), f"def backoff_limit_{number}():\n    return {limit}\n\n\n")
    return "".join(parts), f"What does backoff_limit_{number} return?", str(limit), "read_file"


def matches(draw, number):
    """Matches in files."""
    port = draw.randint(2000, 9000)
    lines = [
        f"src/{draw.choice(NAMES)}/{draw.choice(NAMES)}.py:{draw.randint(1, 400)}:"
        f"    port = config.get('{draw.choice(NAMES)}_port')"
        for _ in range(70)
    ]
    lines.insert(
        draw.randrange(70),
        f"src/settings/defaults.py:{draw.randint(1, 90)}:RELAY_{number}_PORT = {port}",
    )
    return "\n".join(lines), f"What is the value of RELAY_{number}_PORT?", str(port), "grep"


def sentence(draw):
    who = draw.choice(
        [
            "The council",
            "A committee",
            "The harbour office",
            "The museum",
            "A local paper",
            "The ferry company",
        ]
    )
    did = draw.choice(["reported", "announced", "confirmed", "denied", "described", "postponed"])
    what = draw.choice(
        [
            "a new timetable",
            "repairs to the quay",
            "a rise in fares",
            "the opening of a hall",
            "an exhibition of maps",
            "works on the old bridge",
        ]
    )
    return f"{who} {did} {what} in {draw.choice(CITIES)} in {draw.randint(1950, 2020)}."


def search(draw, number):
    """Results of a search on the web."""
    year, city = draw.randint(1850, 1949), draw.choice(CITIES)
    results = []
    for i in range(14):
        body = " ".join(sentence(draw) for _ in range(5))
        results.append(
            f"{i + 1}. {draw.choice(CITIES)} {draw.choice(NAMES)} archive\n"
            f"   https://example.org/{draw.choice(NAMES)}/{draw.randint(1, 999)}\n   {body}"
        )
    at = draw.randrange(14)
    results[at] += f" Lighthouse number {number} was moved to {city} in {year}."
    return (
        "\n\n".join(results),
        f"In which year was lighthouse number {number} moved?",
        str(year),
        "web_search",
    )


def page(draw, number):
    """A page of a handbook in Markdown."""
    days = draw.randint(12, 89)
    parts = [f"# Handbook, part {number}\n"]
    at = draw.randrange(9)
    for i in range(9):
        body = " ".join(sentence(draw) for _ in range(7))
        if i == at:
            body += f" Appeals of form {number} are heard within {days} days."
        parts.append(f"## {draw.choice(CITIES)} and {draw.choice(NAMES)}\n\n{body}\n")
    return (
        "\n".join(parts),
        f"Within how many days are appeals of form {number} heard?",
        str(days),
        "open_page",
    )


KINDS = {
    "log": log,
    "json": records,
    "code": code,
    "matches": matches,
    "search": search,
    "page": page,
}


def trace(turns):
    """The turns of an agent: kind, question, answer, and the messages that a turn adds."""
    draw = random.Random(2026)
    out = []
    for number in range(turns):
        kind = list(KINDS)[number % len(KINDS)]
        result, question, answer, tool = KINDS[kind](draw, number)
        assert answer in result
        call = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": tool, "arguments": json.dumps({"about": f"item {number}"})},
        }
        out.append(
            {
                "kind": kind,
                "question": question,
                "answer": answer,
                "result": result,
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": call["id"], "content": result},
                ],
                "reply": {"role": "assistant", "content": f"It is {answer}."},
            }
        )
    return out


SYSTEM = {"role": "system", "content": "You answer questions with the help of tools. " * 8}


def requests(turns):
    """What the agent sends in each turn, all before it included."""
    messages = [SYSTEM]
    for turn in turns:
        messages = messages + turn["messages"]
        yield messages
        messages = messages + [turn["reply"]]


def post(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as answer:
        return json.load(answer)


class Counter:
    """Tokens (cl100k) of messages, as the server counts them; each message is counted once."""

    def __init__(self, base):
        self.base, self.known = base, {}

    def __call__(self, messages):
        keys = [json.dumps(message, sort_keys=True) for message in messages]
        missing = [i for i, key in enumerate(keys) if key not in self.known]
        if missing:
            body = {"messages": [messages[i] for i in missing], "prefold": {"min_tokens": 1 << 20}}
            counts = [0] * len(missing)
            for decision in post(f"{self.base}/v1/compress", body)["decisions"]:
                counts[decision["message"]] += decision["before"]
            for i, count in zip(missing, counts):
                self.known[keys[i]] = count
        return [self.known[key] for key in keys]


def figures(sent, count):
    """Tokens and dollars of all requests. The cache holds the messages of the request before."""
    before, tokens, plain, cached, broken = [], 0, 0.0, 0.0, 0
    for messages in sent:
        counts = count(messages)
        same = 0
        while same < min(len(before), len(messages)) and before[same] == messages[same]:
            same += 1
        broken += same < len(before)
        old, new = sum(counts[:same]), sum(counts[same:])
        tokens += old + new
        plain += (old + new) * PRICE / 1e6
        cached += (old * READ + new * WRITE) / 1e6
        before = messages
    return {
        "tokens": tokens,
        "dollars": round(plain, 4),
        "dollars_with_cache": round(cached, 4),
        "turns_that_broke_the_cache": broken,
    }


def results_of(sent, turns):
    """What became of each turn's result when it was first sent."""
    return [
        messages[-1]["content"]
        if isinstance(messages[-1]["content"], str)
        else json.dumps(messages[-1]["content"])
        for messages, _ in zip(sent, turns)
    ]


def quality(args, turns, results):
    """Whether the answer is still there, and what a model answers by `prefold eval qa`."""
    kept = [turn["answer"] in result for turn, result in zip(turns, results)]
    rows = [
        {"question": turn["question"], "answers": [turn["answer"]], "context": result}
        for turn, result in zip(turns, results)
    ]
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder, "rows.jsonl"), Path(folder, "report.json")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [
            args.prefold,
            "eval",
            "qa",
            "--model",
            args.model,
            "--host",
            args.host,
            "--data",
            str(data),
            "--device",
            args.device,
            "--ways",
            "full",
            "--limit",
            str(len(rows)),
            "--json",
            str(report),
            *args.eval,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            row = json.loads(report.read_text())["rows"][0]
            answers = {name: row[name] for name in ("host_tokens", "nll", "f1")}
        else:
            answers = {"error": done.stderr[-500:]}
    by_kind = {
        kind: round(
            sum(k for k, t in zip(kept, turns) if t["kind"] == kind)
            / max(1, sum(t["kind"] == kind for t in turns)),
            3,
        )
        for kind in KINDS
    }
    return {"answer_kept": round(sum(kept) / len(kept), 3), "by_kind": by_kind, "eval": answers}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_prefold(base, turns, rate):
    sent, seconds = [], 0.0
    for messages in requests(turns):
        start = time.monotonic()
        answer = post(f"{base}/v1/compress", {"messages": messages, "prefold": {"rate": rate}})
        seconds += time.monotonic() - start
        sent.append(answer["messages"])
    return sent, seconds


def by_headroom(python, turns, way):
    """headroom's own compressor, in a process of its interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given.json"), Path(folder, "out.json")
        given.write_text(json.dumps({"way": way, "requests": list(requests(turns))}))
        subprocess.run([python, HERE / "headroom_side.py", given, out], check=True)
        done = json.loads(out.read_text())
    return done["sent"], done["seconds"], done["version"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prefold")
    parser.add_argument("model")
    parser.add_argument("host")
    parser.add_argument("--headroom")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--rates", default="0.5,0.33,0.2")
    parser.add_argument("--eval", nargs="*", default=[], help="more options for `prefold eval qa`")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    turns = trace(args.turns)
    rates = [float(rate) for rate in args.rates.split(",")]
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            args.prefold,
            "serve",
            "--model",
            args.model,
            "--device",
            args.device,
            "--listen",
            f"127.0.0.1:{port}",
            "--deadline",
            "600s",
            "--log",
            "off",
        ]
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{base}/readyz", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        count = Counter(base)
        ways = {"full": (list(requests(turns)), 0.0)}
        for rate in rates:
            ways[f"prefold {rate}"] = by_prefold(base, turns, rate)
        version = None
        if args.headroom:
            for way in ("default", "frozen"):
                *ways[f"headroom {way}"], version = by_headroom(args.headroom, turns, way)
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "turns": len(turns),
            "headroom": version,
            "prices": {"input": PRICE, "cache_write": WRITE, "cache_read": READ},
            "ways": {},
        }
        for name, (sent, seconds) in ways.items():
            report["ways"][name] = {
                **figures(sent, count),
                "seconds": round(seconds, 2),
                **quality(args, turns, results_of(sent, turns)),
            }
            print(name, json.dumps(report["ways"][name]), flush=True)
    finally:
        server.terminate()
        code = server.wait(60)
    assert code == 0, code
    if args.record:
        args.record.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
