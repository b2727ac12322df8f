"""Many threads over one compressor: results agree, and memory does not grow."""

import concurrent.futures
import os
import time

import pytest

SECONDS = float(os.environ.get("PREFOLD_STRESS_SECONDS", "4"))


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_is_flat(compressor, documents):
    questions = ["Who is the mayor?", "Where is the school?", ""]
    want = [compressor.compress(documents, question=q, rate=0.5).text for q in questions]

    def work(end):
        done = 0
        while time.monotonic() < end:
            made = compressor.compress(documents, question=questions[done % 3], rate=0.5)
            assert made.text == want[done % 3]
            done += 1
        return done

    def together(seconds):
        end = time.monotonic() + seconds
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return sum(pool.map(work, [end] * 8))

    # Every thread has its buffers then.
    together(SECONDS / 2)
    before = resident()
    done = together(SECONDS)
    grown = resident() - before
    print(
        f"\n8 threads, {SECONDS:.0f} s: {done} calls, {before >> 20} MiB, "
        f"grown by {grown >> 10} KiB"
    )
    assert done >= 8 and grown < 16 << 20
