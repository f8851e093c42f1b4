"""Protocols whose steps change the same attributes at the same time: what they do is told apart by their source."""

from __future__ import annotations

from collections import Counter, defaultdict

from protocols import Custom, meet


class Merges(Custom):
    """Every kind of change that goes together."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.total = 0
        self.spent = 0.0
        self.counts = {}
        self.guarded = {}
        self.words = Counter()
        self.groups = {}
        self.byKind = defaultdict(list)
        self.nested = {}
        self.pool = set()
        self.done = False
        self.shape = None
        self.best = 0
        self.items = [3, 1, 2]

    def work(self, i):
        self.log.append(i)
        self.table[i] = i * i
        self.pool.add(i % 7)
        self.total += i
        self.spent = self.spent + 0.5
        self.counts[i % 3] = self.counts.get(i % 3, 0) + 1
        if i % 5 not in self.guarded:
            self.guarded[i % 5] = 0
        self.guarded[i % 5] += 1
        self.words.update(["all", f"w{i % 2}"])
        self.groups.setdefault(i % 4, []).append(i)
        self.byKind[i % 2].append(i)
        stats = self.nested.setdefault(i % 2, {"n": 0, "items": []})
        stats["n"] += 1
        stats["items"].append(i)
        self.n += 1
        self.done = True
        self.shape = (10, 20)

    def plain(self):
        """What is to be compared: order does not count where steps are concurrent."""
        return {
            "log": sorted(self.log), "table": self.table, "pool": self.pool, "total": self.total, "spent": self.spent,
            "counts": self.counts, "guarded": self.guarded, "words": dict(self.words), "n": self.n.get(),
            "groups": {k: sorted(v) for k, v in self.groups.items()}, "done": self.done, "shape": self.shape,
            "byKind": {k: sorted(v) for k, v in self.byKind.items()},
            "nested": {k: (v["n"], sorted(v["items"])) for k, v in self.nested.items()},
        }  # fmt: skip

    def setBest(self, folder, i):
        meet(folder, i, 2)
        self.best = i

    def setItem(self, folder, i):
        meet(folder, i, 2)
        self.table["k"] = i

    def sortAndAppend(self, folder, i):
        meet(folder, i, 2)
        if i == 2:
            self.items.sort()
        else:
            self.items.append(i)

    def replaceAndFill(self, folder, i):
        meet(folder, i, 2)
        if i == 1:
            self.table = {"new": 1}
        else:
            self.table["other"] = 2

    def helped(self, folder, i):
        meet(folder, i, 2)
        _bump(self.counts, "k")

    def setLast(self, folder, i):
        meet(folder, i, 2)
        self.value = str(i)

    def agree(self, folder, i):
        meet(folder, i, 2)
        self.value = "same"
        self.best = 7
        self.table["k"] = [1, 2]

    def multiply(self, folder, i):
        meet(folder, i, 2)
        self.best = 3 * self.best + i

    def cells(self, folder, i):
        meet(folder, i, 2)
        self.array[i] = i + 1.0
        self.sums += i + 1

    def sameCell(self, folder, i):
        meet(folder, i, 2)
        self.array[0] = i


def _bump(table, key):
    table[key] = table.get(key, 0) + 1
