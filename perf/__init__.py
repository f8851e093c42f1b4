"""Measurements: one script a question. `python -m perf` runs them all; `python -m perf.wide` one of them.

=========== ====================================================== ==========================================
script      question                                               topology
=========== ====================================================== ==========================================
wide        how many empty steps a second?                         no edges
chain       what does one dependent step cost?                     each after the one before
stencil     how many steps a second in a graph with layers?        100 wide, 3 prerequisites each
metg        how short may steps be?                                4 wide, 2 or 3 prerequisites each
speedup     how much faster with N workers?                        no edges, 1 ms to 1 s of pure Python each
balance     does the right step go first?                          no edges, and then a chain
arrays      how fast does large data travel, in how much memory?   no edges, arrays in and out, one shared
coldstart   what does a program wait for four empty steps?         no edges, a fresh process each time
coordinator what does the coordinator itself cost for a step?      layers, 2 to 32 virtual workers
million     do rate and memory stay flat up to a million steps?    no edges, and a random graph
real        what is gained in a real protocol?                     mpsteps.demo on full-size micrographs
=========== ====================================================== ==========================================

All of them take about three quarters of an hour on two cores, `--runs 3` half of that, `--smoke` half a minute.

Every script draws its topology, verifies the results it gets before a time counts, runs the systems it compares in
turn (A B C A B C ...), and reports medians with the machine they are of. Only the clusters (Dask, Ray) come after the
others have ended, since they take part of the cores also when they are idle. How a system is used stands in one place:
`_ours` for mpsteps, `peers/` for the others; one that is not installed is left out, with a note.

Pools of all systems are up and warmed before the clock starts. A run of a *protocol* cannot be: it starts its workers,
journals every step and ends its workers, and all that is in its time. Where it matters, the same run is also given as
"engine only": from its first step's dispatch to the end of its last step, as a Listener sees it.
"""
