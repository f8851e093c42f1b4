"""Measurements: one script a question. `python -m perf` runs them all; `python -m perf.wide` one of them.

Every script draws its topology, verifies the results it gets, runs the systems it compares in turn (A B C A B C ...),
and reports medians. See docs/performance.md for how to read them.
"""
