"""Compiles every kernel for every architecture, reads what ptxas says and, of sm_90a, the machine code.

    python3 tools/kernel_table.py [--write] [nvcc]

Fails on spills, on local memory or a fence of memory anywhere in a kernel, on what ptxas warns of in
asynchronous products (C75xx), on a loop that is longer than the head of its kernel says ("// sass kernel: 225 a
step, 682 a tile", the innermost loop first), and where kernels/sass.md is not the table that was made; --write
makes it anew. Another nvcc than the one that the table names makes other code: the table is not compared then,
nor are the promises.
"""

import difflib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sass

ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]
READ = "sm_90a"
KERNELS = Path(__file__).resolve().parent.parent / "kernels"
TABLE = KERNELS / "sass.md"
# Local memory, and fences: in a loop each costs more than all else in it.
BANNED = ("LDL", "STL", "MEMBAR", "ERRBAR", "CCTL")
# Worth a column: products, exponentials and the like, shared memory, copies, barriers.
COLUMNS = ["HMMA", "HGMMA", "MUFU", "LDSM", "LDS", "STS", "LDGSTS", "LDG", "STG", "BAR"]


def find_nvdisasm(nvcc):
    """Beside nvcc, in another wheel beside nvcc's, or on the path."""
    path = Path(shutil.which(nvcc) or nvcc)
    for folder in [path.parent, *path.parent.parent.parent.glob("*/bin")]:
        if (folder / "nvdisasm").exists():
            return str(folder / "nvdisasm")
    return shutil.which("nvdisasm")


def compile_one(nvcc, nvdisasm, source, target, folder):
    """What ptxas reports, {kernel: [registers, shared bytes, spilled bytes]}, its remarks, and the code."""
    if target.startswith("compute"):
        command = [nvcc, "-std=c++17", "-O3", "-ptx", f"-arch={target}"]
    else:
        command = [nvcc, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", f"-arch={target}"]
    out = Path(folder) / f"{source.stem}.{target}"
    done = subprocess.run([*command, source, "-o", out], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} for {target}:\n{done.stderr}")
    if "warning" in done.stderr:
        print(done.stderr, file=sys.stderr)
    found, name = {}, None
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            found[name] = [0, 0, 0]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[name][2] = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name][:2] = [int(match[1]), int(shared[1]) if shared else 0]
    # "setmaxnreg ignored" and "wgmma serialised" are not warnings to ptxas, and ruin a kernel.
    remarks = [f"{source.name} for {target}: {line.strip()}" for line in done.stderr.splitlines() if "(C75" in line]
    code = {}
    if target == READ and nvdisasm:
        listing = subprocess.run([nvdisasm, out], capture_output=True, text=True, check=True).stdout
        code = sass.read(listing)
    return found, remarks, code


def promises():
    """{kernel: [(number, of what)]} from the heads."""
    found = {}
    for source in sorted(KERNELS.glob("*.cu")):
        for name, text in re.findall(r"^// sass (\w+): (.*)$", source.read_text(), re.M):
            found[name] = [(int(n), what) for n, what in re.findall(r"(\d+) an? (\w+)", text)]
    return found


def loops_of(kernel):
    """Of every loop on the way to the innermost hot one: instructions and their kinds."""
    for loop in kernel.hot():
        way = kernel.way_round(loop)
        if way is not None:
            counts = {}
            for at in way:
                kind = kernel.operation(at).split(".")[0]
                counts[kind] = counts.get(kind, 0) + 1
            yield len(way), counts


def main():
    arguments = [a for a in sys.argv[1:] if a != "--write"]
    nvcc = arguments[0] if arguments else "nvcc"
    nvdisasm = find_nvdisasm(nvcc)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V([\d.]+)", version)[1]
    sources = sorted(KERNELS.glob("*.cu"))
    jobs = [(source, target) for source in sources for target in [*ARCHITECTURES, "compute_80"]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, nvdisasm, *job, folder), jobs))
    table, code, wrong = {}, {}, []
    for (source, target), (kernels, remarks, listing) in zip(jobs, results):
        wrong += remarks
        code.update(listing)
        for name, numbers in kernels.items():
            table.setdefault((source.stem, name), {})[target] = numbers
            if numbers[1]:
                wrong.append(f"{name} has {numbers[1]} bytes of fixed shared memory on {target}: all is to be dynamic")
            if numbers[2]:
                wrong.append(f"{name} spills {numbers[2]} bytes on {target}")

    lines = [
        "# Kernels as machine code", "",
        f"By `make kernels` with nvcc {version}; `make kernels-table` writes this file. Instructions are of {READ}.", "",
        "## Registers", "",
        f"| file | kernel | {' | '.join(ARCHITECTURES)} | instructions |",
        "|---|---|" + "--:|" * (len(ARCHITECTURES) + 1),
    ]
    for (file, name), columns in sorted(table.items()):
        cells = " | ".join(str(columns[a][0]) for a in ARCHITECTURES)
        lines.append(f"| {file} | {name} | {cells} | {len(code[name].code) if name in code else '-'} |")
    lines += [
        "", "## Loops", "",
        "Instructions of a warp for one round of a kernel's hottest loop and of the loops around it, each without",
        "those inside of it and without what is done in few rounds; beside them what the kernel's head promises.", "",
        f"| kernel | loop | instructions | promised | {' | '.join(COLUMNS)} | other |",
        "|---|---|--:|--:|" + "--:|" * (len(COLUMNS) + 1),
    ]
    promised = promises()
    known = TABLE.read_text() if TABLE.exists() else ""
    same_compiler = f"nvcc {version};" in known or "--write" in sys.argv
    for name in sorted(code):
        for banned in BANNED:
            if count := code[name].counts()[banned]:
                wrong.append(f"{name} has {count} {banned}")
        of = promised.pop(name, [])
        loops = list(loops_of(code[name]))
        if of and len(loops) < len(of) and same_compiler:
            wrong.append(f"{name}: its head promises {len(of)} loops, of which {len(loops)} were found")
        for i, (length, counts) in enumerate(loops[:max(len(of), 1)]):
            limit, what = of[i] if i < len(of) else (None, "innermost")
            if limit is not None and length > limit and same_compiler:
                wrong.append(f"{name}: {length} instructions a {what}, and its head promises {limit}")
            cells = " | ".join(str(counts.get(c) or "") for c in COLUMNS)
            other = length - sum(counts.get(c, 0) for c in COLUMNS)
            lines.append(f"| {name} | {what} | {length} | {limit or ''} | {cells} | {other} |")
    if code:
        wrong += [f"the head of {name} promises its code, and no such kernel was found" for name in promised]
    text = "\n".join(lines) + "\n"
    print(text)
    if not code:
        print("nvdisasm was not found: no machine code was read", file=sys.stderr)
    elif "--write" in sys.argv:
        TABLE.write_text(text)
    elif not same_compiler:
        print(f"{TABLE.name} was made by another nvcc: not compared", file=sys.stderr)
    elif text != known:
        wrong.append(f"{TABLE} is another table; `make kernels-table` writes it:")
        wrong += difflib.unified_diff(known.splitlines(), text.splitlines(), "checked in", "made", lineterm="", n=0)
    print(f"{len(table)} kernels for {', '.join(ARCHITECTURES)}, and PTX of compute_80")
    if wrong:
        sys.exit("\n".join(wrong))


main()
