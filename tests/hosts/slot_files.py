#!/usr/bin/env python3
"""A program on libllama continues after prefold's prefixes, which it loads as sequence-state files.

    slot_files.py PREFOLD UNPACKED VERSION COMMAND...

PREFOLD is the built program, UNPACKED a GGUF of SmolLM2-135M-Instruct with weights of F32, VERSION that of the files which the
program reads. It is called as `COMMAND... MODEL SLOT QUESTION-IDS COUNT` and prints ids as JSON: they must be those of
`prefold generate` after a prefilled, a soft and a pruned prefix, and it must refuse a file of the other version.
"""

import json
import os
import subprocess
import sys
import tempfile

from smollm2_cases import ANSWER, HEAD, QUESTION, SOFT_QUESTION, TEXT, write_adapter


def main(program, model, version, *command):
    def run(*arguments):
        return subprocess.run(arguments, stdout=subprocess.PIPE, check=True).stdout

    def ids_of(text):
        """As `prefold prefill` reads a prompt: special tokens by their names."""
        made = run(program, "generate", "--prompt", text, "-n", "1", "--json", "-m", model)
        return json.loads(made)["prompt_ids"]

    with tempfile.TemporaryDirectory() as folder:
        adapter = os.path.join(folder, "adapter")
        write_adapter(adapter)
        head = json.dumps(ids_of(HEAD))
        cases = {
            "prefilled": ["prefill", "--ids", head],
            "soft": ["encode", "--adapter", adapter, "--text", TEXT],
            "pruned": ["prefill", "--ids", head, "--keep", "0.6"],
        }
        for name, made in cases.items():
            prefix, slot = os.path.join(folder, name), os.path.join(folder, name + ".bin")
            run(program, *made, "--dtype", "f16", "-m", model, "-o", prefix)
            run(program, "export", "--to", "llama.cpp", "--slot-version", version, prefix, "-o", slot)
            question = json.dumps(ids_of(SOFT_QUESTION if name == "soft" else QUESTION))
            more = ["--json", "--ignore-eos", "-n", str(ANSWER), "-m", model]
            want = json.loads(run(program, "generate", "-p", prefix, "--prompt-ids", question, *more))["ids"]
            got = json.loads(run(*command, model, slot, question, str(ANSWER)))
            assert got == want, "{0}: {1} instead of {2}".format(name, got, want)
            print("{0}: version {1}: the same {2} ids".format(name, version, len(got)))
        other = {"3": "4", "4": "3"}[version]
        run(program, "export", "--to", "llama.cpp", "--slot-version", other, prefix, "-o", slot)
        done = subprocess.run([*command, model, slot, question, "1"], capture_output=True, check=False)
        assert done.returncode != 0, done.stdout
    print("all passed")


if __name__ == "__main__":
    main(*sys.argv[1:])
