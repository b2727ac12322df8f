#!/usr/bin/env python3
"""Draws docs/gallery.md: one real text of each form, before and after.

    python3 tools/make_gallery.py target/debug/prefold [--model MODEL] > docs/gallery.md

The texts are in tests/data/gallery. Dropped text is struck, or a line of a diff that starts with `-`.
"""

import difflib
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "tests/data/gallery"

# Title, file, question, rate, and whether the text is drawn as running text.
EXAMPLES = [
    ("Prose, with a question", "prose.txt", "In which street were Holmes's lodgings?", "30%", True),
    ("Prose, without a question", "prose.txt", "", "50%", True),
    ("Markdown", "readme.md", "How is a prefix made for llama.cpp?", "20%", False),
    ("Code", "module.rs", "", "40%", False),
    ("Code, with a question", "script.py", "Which packages does it need?", "40%", False),
    ("A log", "log.txt", "Which version of libsystemd0 was installed?", "20%", False),
    ("A listing", "listing.txt", "", "30%", False),
    ("A table", "table.csv", "When was Sarge released?", "30%", False),
    ("HTML", "page.html", "What does ffi_prep_cif do?", "40%", False),
]

# The same for texts that come out as JSON: what is inside of a value is shown by lines.
JSON = [
    ("JSON", "response.json", ["--rate", "30%", "--question", "Which issue is about a large upload?"]),
    ("A conversation", "conversation.json", ["--rate", "40%", "--messages"]),
]


def kept_bytes(program, path, question, rate):
    """Compresses a file; gives its bytes, which of them were kept, and the result."""
    command = [*program, "--json", "--quiet", "--rate", rate, str(path)]
    if question:
        command += ["--question", question]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(out)
    data = path.read_bytes()
    kept = bytearray(len(data))
    for context in result["contexts"]:
        for start, end in context["spans"]:
            kept[start:end] = b"\1" * (end - start)
    return data, kept, result


def struck(data, kept):
    """Running text with what was dropped struck through."""
    out, at = [], 0
    while at < len(data):
        end = at
        while end < len(data) and bool(kept[end]) == bool(kept[at]):
            end += 1
        text = data[at:end].decode()
        for mark in "*_~`<[":
            text = text.replace(mark, "\\" + mark)
        if kept[at]:
            out.append(text)
        else:
            # A paragraph ends what is struck.
            parts = [part.strip() for part in text.split("\n\n")]
            drawn = "\n\n".join(f"~~{part}~~" if part else "" for part in parts)
            out.append(drawn + ("\n\n" if text.endswith("\n\n") else " "))
        at = end
    return "".join(out).strip()


def diff(data, kept):
    """Lines, with a minus in front of those that were dropped."""
    out, at = [], 0
    for line in data.decode().splitlines(keepends=True):
        size = len(line.encode())
        shown = line.rstrip("\n")
        own = [
            kept[at + i]
            for i, byte in enumerate(line.encode())
            if not chr(byte).isspace()
        ]
        if not own:
            out.append("")
        elif all(own):
            out.append(" " + shown)
        else:
            out.append("-" + shown)
            if any(own):
                part = bytes(b for i, b in enumerate(line.encode()) if kept[at + i])
                out.append("+" + part.decode(errors="replace").rstrip("\n"))
        at += size
    # Blank lines that end a stretch are left out.
    while out and not out[-1]:
        out.pop()
    return "\n".join(out)


def changes(before, after):
    """Lines that differ, with one around them."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm="")
    # The first two name files.
    return "\n".join(["…" if line.startswith("@@") else line for line in lines][2:])


def main():
    program = [sys.argv[1], "compress"]
    if "--model" in sys.argv:
        program += ["--model", sys.argv[sys.argv.index("--model") + 1]]
    print("# One text of each form, before and after\n")
    print("Dropped text is struck, or a line that starts with `-`. `+` is what is left of a line that was cut between")
    print("sentences. Drawn by `tools/make_gallery.py` from `tests/data/gallery`.")
    for title, name, question, rate, running in EXAMPLES:
        data, kept, result = kept_bytes(program, FOLDER / name, question, rate)
        # A span may lack the white space after it.
        print(f"\n## {title}\n")
        asked = f"Question: *{question}* " if question else ""
        print(f"{asked}{result['origin_tokens']} tokens, at most {result['target']}: {result['compressed_tokens']} are left.\n")
        print(struck(data, kept) if running else f"````diff\n{diff(data, kept)}\n````")
    for title, name, options in JSON:
        command = [*program, "--quiet", *options, str(FOLDER / name)]
        after = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before = (FOLDER / name).read_text()
        if "--question" in options:
            # The question comes last.
            after = after.removesuffix(options[-1]).rstrip()
        json.loads(after)
        print(f"\n## {title}\n\n`{' '.join(options)}`; {len(before)} characters, {len(after)} are left.\n")
        print(f"````diff\n{changes(before, after)}\n````")


if __name__ == "__main__":
    main()
