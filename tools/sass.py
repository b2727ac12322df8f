"""Reads nvdisasm's listing of a cubin: loops of every kernel and what a thread issues in them.

A loop is what lies between a backward branch and its target. Its length is the number of instructions on
the shortest way round that passes every instruction of NEEDED: what is only done now and then (a ragged last
tile, the tile with the target) lies beside that way. Loops inside of it are not counted.
"""

import heapq
import re
from collections import Counter

# Products and asynchronous copies: no round of a loop goes without them, though the last may.
NEEDED = ("HMMA", "HGMMA", "LDGSTS", "UBLKCP", "UTMALDG")
PRODUCTS = ("HMMA", "HGMMA")


class Kernel:
    def __init__(self):
        self.code = []  # instructions as text
        self.labels = {}  # name: index of the instruction after it

    def operation(self, at):
        return re.sub(r"^@!?U?P\w+\s+", "", self.code[at]).split()[0]

    def counts(self, begin=0, end=None):
        end = len(self.code) if end is None else end
        return Counter(self.operation(i).split(".")[0] for i in range(begin, end))

    def following(self, at):
        """Where a thread may continue."""
        text, operation = self.code[at], self.operation(at)
        if operation.startswith("BRA"):
            target = self.labels.get(next(iter(re.findall(r"\((\.L\w+)\)", text)), None))
            # With a predicate, of the whole instruction or of the jump.
            maybe = text.startswith("@") or re.search(r"BRA\S*\s+!?U?P", text)
            return [i for i in (target, at + 1 if maybe else None) if i is not None]
        if operation.startswith(("EXIT", "RET")) and not text.startswith("@"):
            return []
        return [at + 1]

    def loops(self):
        """(first, last) of each, the outer before the inner."""
        found = {}
        for at in range(len(self.code)):
            if self.operation(at).startswith("BRA"):
                for to in self.following(at):
                    if to < at:
                        found[to] = max(found.get(to, 0), at)
        return sorted(found.items())

    def _shortest(self, begin, end, first, last, free):
        known, before, queue = {begin: 0}, {}, [(0, begin)]
        while queue:
            steps, at = heapq.heappop(queue)
            if at == end:
                break
            if steps > known[at] or at == last:
                continue
            for to in self.following(at):
                if first <= to <= last:
                    longer = steps + (to not in free)
                    if longer < known.get(to, 1 << 30):
                        known[to], before[to] = longer, at
                        heapq.heappush(queue, (longer, to))
        if end not in known:
            return None
        way = [end]
        while way[-1] != begin:
            way.append(before[way[-1]])
        return way[::-1]

    def way_round(self, loop):
        """Indices of the instructions of one round, without those of loops inside."""
        first, last = loop
        inner = [(a, b) for a, b in self.loops() if first <= a and b <= last and (a, b) != loop]
        free = {i for a, b in inner for i in range(a, b + 1)}
        stops = [i for i in range(first, last + 1) if self.operation(i).startswith(NEEDED) and i not in free]
        way, at = [first], first
        for stop in [*stops, last]:
            if stop == at:
                continue
            part = self._shortest(at, stop, first, last, free)
            if part is None:  # branches that exclude each other: the listing is not understood
                return None
            way += part[1:]
            at = stop
        return [i for i in way if i not in free]

    def hot(self):
        """Loops around the most products, or else the most arithmetic, the innermost first."""
        loops = self.loops()
        inner = [l for l in loops if not any(l != m and l[0] <= m[0] and m[1] <= l[1] for m in loops)]
        if not inner:
            return []

        def weight(loop):
            counts = self.counts(loop[0], loop[1] + 1)
            return sum(counts[p] for p in PRODUCTS), counts["FFMA"], loop[1] - loop[0]

        best = max(inner, key=weight)
        return sorted((l for l in loops if l[0] <= best[0] and best[1] <= l[1]), key=lambda l: l[1] - l[0])


def read(listing):
    """{name: Kernel}"""
    kernels, kernel = {}, None
    for line in listing.splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.(\w+),", line):
            kernel = kernels.setdefault(match[1], Kernel())
        elif re.match(r"\s*\.section", line):
            kernel = None
        elif kernel is None:
            continue
        elif match := re.match(r"(\.L\w+):", line):
            kernel.labels[match[1]] = len(kernel.code)
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            kernel.code.append(match[1])
    return kernels
