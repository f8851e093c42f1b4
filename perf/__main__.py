"""`python -m perf`: all measurements, one after another."""

from __future__ import annotations

import sys

from perf import chain, wide

if __name__ == "__main__":
    for script in (wide, chain):
        script.main(sys.argv[1:])
