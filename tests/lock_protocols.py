"""Protocols whose steps share one lock. At the top level of a module, so that worker processes can import them."""

from __future__ import annotations

import os
import threading
import time

from protocols import Custom, meet, note, wait_until

from mpsteps import step


class Shares(Custom):
    """Everything that is not safe without the lock, and exact with it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counter = 0
        self.best = 0
        self.cells = [0, 0, 0]
        self.chain = {0: 1}
        self.text = ""
        self.names = set()
        self.last = None

    def work(self, i, times=1):
        """Each line is wrong if another step is between its read and its write."""
        for j in range(times):
            with self._lock:
                self.counter = self.counter * 1 + 1
                self.best = max(self.best, (7 * i + j) % 1000)
                self.cells[0] += 1
                self.cells[i % 3] += i
                key = len(self.chain)
                self.chain[key] = self.chain[key - 1] + i
                self.text = self.text + chr(97 + i % 26)
                self.names = self.names | {i}
                self.last = (i, j)

    def plain(self):
        """What is to be compared. The order of the steps does not count."""
        return {
            "counter": self.counter, "best": self.best, "cells": self.cells, "names": self.names,
            "chain": (len(self.chain), self.chain[len(self.chain) - 1]), "text": "".join(sorted(self.text)),
        }  # fmt: skip
