"""Makes one folder that checks and measures the kernels on a GPU machine without Rust and without a network.

    python3 tools/gpu_bundle.py [folder]          (default target/gpu-bundle)

In it: test and bench binaries with their kernels, stripped; golden values; run.sh, which checks and measures;
train.sh, which trains an adapter. Needed here: cargo, nvcc (`make cuda-toolkit`), g++ and strip. At most 60 MiB, or this fails. With --model and --corpus (JSONL, plain or packed) these are
cut into parts of at most 60 MiB beside the folder, to be carried one by one.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "crates/cuda-emulator/cpp"
LIMIT = 60 << 20
BINARIES = ["kernels"]


def built():
    """Paths of the binaries, by their names here."""
    command = ["cargo", "build", "--release", "--message-format=json", "--bin", "prefold", "--bench", "kernels",
               "--bench", "train"]
    for name in BINARIES:
        command += ["--test", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("the build failed")
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            kind, name = message["target"]["kind"][0], message["target"]["name"]
            found[f"bench_{name}" if kind == "bench" else name] = pathlib.Path(message["executable"])
    return found


def library(unit, to):
    subprocess.run(
        ["g++", "-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-I", EMULATOR, "-x", "c++",
         ROOT / "kernels/host" / unit, EMULATOR / "runtime.cpp", "-o", to], check=True)


def parts(source, name, making, folder):
    """Cuts a file for train.sh and run.sh to join; its checksum goes with the bundle."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{name}.part-*"):
        old.unlink()
    (making / f"{name}.sha256").write_text(hashlib.sha256(source.read_bytes()).hexdigest() + "\n")
    with source.open("rb") as file:
        count = 0
        while piece := file.read(LIMIT):
            (folder / f"{name}.part-{count:02}").write_bytes(piece)
            count += 1
    print(f"{count} parts of {source.name} in {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "target/gpu-bundle")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--corpus", type=pathlib.Path)
    parser.add_argument("--dev", type=pathlib.Path, help="rows that train.sh measures on; they go into the bundle")
    args = parser.parse_args()
    making = args.folder.with_name(args.folder.name + ".tmp")
    shutil.rmtree(making, ignore_errors=True)
    (making / "bin").mkdir(parents=True)
    for name, path in sorted(built().items()):
        subprocess.run(["strip", "-o", making / "bin" / name, path], check=True)
    with tarfile.open(making / "bin.tar.gz", "w:gz") as packed:
        packed.add(making / "bin", "bin")
    shutil.rmtree(making / "bin")
    for unit in ("library.cu", "planted.cu"):
        library(unit, making / f"{unit.replace('.', '-')}.so")
    golden = ROOT / "tests/data/golden"
    (making / "shared/golden").mkdir(parents=True)
    for name in ("models", "500x/tiny", "500x/tiny-adapter-all", "500x/tiny-adapter-qv"):
        shutil.copytree(golden / name, making / "shared/golden" / name)
    shutil.copy(golden / "llmlingua.jsonl", making / "shared/golden")
    for name in ("run", "train", "parts"):
        shutil.copy(ROOT / f"tools/gpu_{name}.sh", making / f"{name}.sh")
    for name in ("baseline", "baseline_train"):
        shutil.copy(ROOT / f"benches/{name}.py", making)
    if args.dev:
        shutil.copy(args.dev, making / "dev.jsonl")
    version = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    (making / "VERSION").write_text(version.stdout)
    if args.model:
        parts(args.model, "model.gguf", making, args.folder.with_name("model.gguf"))
    if args.corpus:
        # The name tells how it is packed.
        name = "".join(["corpus.jsonl", *[s for s in args.corpus.suffixes if s in (".xz", ".zst")]])
        parts(args.corpus, name, making, args.folder.with_name(name))
    size = sum(path.stat().st_size for path in making.rglob("*") if path.is_file())
    print("\n".join(f"{path.stat().st_size:>10} {path.relative_to(making)}" for path in sorted(making.rglob("*"))
                    if path.is_file() and path.stat().st_size > 1 << 20))
    if size > LIMIT:
        sys.exit(f"{size / 2**20:.1f} MiB are more than {LIMIT >> 20}")
    shutil.rmtree(args.folder, ignore_errors=True)
    making.rename(args.folder)
    print(f"{args.folder}: {size / 2**20:.1f} MiB; carry it to the machine and start run.sh or train.sh there")


main()
