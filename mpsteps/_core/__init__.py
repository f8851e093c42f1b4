"""The pure core: steps, graph, slots and the scheduler.

Nothing in this package knows a clock, a process, a file, a lock or a logger; a test walks its imports. Events go in,
commands come out, and the same events always give the same commands, so that a race can be told as a list of events.
"""
