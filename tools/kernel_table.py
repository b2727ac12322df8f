"""Compiles every kernel for every architecture and prints what ptxas says of it: registers, shared
memory that is fixed at compilation, spills. Fails on a spill.

    python3 tools/kernel_table.py [nvcc]
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]
KERNELS = Path(__file__).resolve().parent.parent / "kernels"


def compile_one(nvcc, source, target, folder):
    """What ptxas reports: {kernel: (registers, shared bytes, spilled bytes)}."""
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
    return found


def main():
    nvcc = sys.argv[1] if len(sys.argv) > 1 else "nvcc"
    sources = sorted(KERNELS.glob("*.cu"))
    jobs = [(source, target) for source in sources for target in [*ARCHITECTURES, "compute_80"]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, *job, folder), jobs))
    table, spills = {}, []
    for (source, target), kernels in zip(jobs, results):
        for name, numbers in kernels.items():
            table.setdefault((source.stem, name), {})[target] = numbers
            if numbers[2]:
                spills.append(f"{name} spills {numbers[2]} bytes on {target}")
    print("registers + fixed shared bytes; dynamic shared memory is chosen at launch (src/gpu/)")
    print(f"{'file':10} {'kernel':20}" + "".join(f"{a:>10}" for a in ARCHITECTURES) + f"{'spills':>8}")
    for (file, name), columns in table.items():
        cells = "".join(f"{f'{columns[a][0]}+{columns[a][1]}':>10}" for a in ARCHITECTURES)
        print(f"{file:10} {name:20}{cells}{sum(c[2] for c in columns.values()):>8}")
    print(f"{len(table)} kernels for {', '.join(ARCHITECTURES)}, and PTX of compute_80")
    if spills:
        sys.exit("\n".join(spills))


main()
