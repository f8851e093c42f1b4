"""What is gained in a real protocol? The demo's, on full-size micrographs, against its own functions in threads.

::

    for each of 4 micrographs of 4096 x 4096 pixels:

        spectra of 15 bands   o o o ... o        picking in 81 tiles   o o o o ... o
                               \\ \\ | / /                                \\ \\ | | / /
        fit of the CTF             o                                         |
                                  / \\                                        |
        pictures                 o   \\                                       o
                                  \\   \\                                     /
        output of all              ------------------ o -------------------

Steps of 5 ms to 2 s, numpy and scipy (which let go of the GIL in long calls) and matplotlib (which does not). mpsteps
runs the protocol as `mpsteps demo` does: journal, logs, write-back of its results, start and end of its workers, all
in the time. The others get the same steps as plain calls of the same methods of one protocol object, each when its
prerequisites have finished. All have to write the same table of defoci. Scipion's own executor, which takes some five
minutes, is only run if `--systems` names it.

The micrographs are made of the bundled one, by reflection, with some noise of their own. Needs the demo's packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

from perf._harness import Job, Result, Timing, brief, check, count_of, grid, runs_of, script
from perf._ours import ProtocolRun, timed_run
from perf._systems import System, chosen, in_turn

USUAL = ("loop", "threads", "protocol")
NEEDS = ("numpy", "scipy", "mrcfile", "matplotlib")
SIDE = 4096


def measure(args: argparse.Namespace) -> List[Result]:
    """One table."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"\nnote: real is left out: there is no module {missing[0]!r} (pip install {' '.join(missing)})")
        return []
    count = count_of(args, usual=4, smoke=1)
    folder = tempfile.mkdtemp(prefix="mpsteps-perf-")
    try:
        pattern = make_micrographs(folder, count, 0 if args.smoke else SIDE)
        wanted: List[str] = []  # the table of the first system that has finished
        rows = in_turn(args, chosen(args, USUAL), lambda system: [_job(system, pattern, folder, wanted)], runs_of(args))
    finally:
        shutil.rmtree(folder)
    values = {title: row.median for title, row in rows.items()}
    cells = {}
    for title in sorted(values, key=lambda t: values[t]):
        seconds = rows[title].seconds
        gain = max(values.values()) / values[title]
        cells[title] = [brief(values[title]), f"{brief(min(seconds))}..{brief(max(seconds))}", f"{gain:.2f}x"]
    size = "1480 x 1532" if args.smoke else f"{SIDE} x {SIDE}"
    title = f"real: the demo's protocol on {count} micrograph{'s' * (count > 1)} of {size} pixels"
    grid(title, ["seconds", "min..max", "faster than the slowest"], cells)
    seconds_of_all = {name: row.seconds for name, row in rows.items()}
    return [{"question": "real", "title": title, "unit": "s", "values": values, "seconds": seconds_of_all}]


def make_micrographs(folder: str, count: int, side: int) -> str:
    """The pattern of their paths. `side` 0: as large as the bundled one."""
    import mrcfile
    import numpy as np

    from mpsteps.demo import bundled_micrograph

    with mrcfile.open(bundled_micrograph()) as bundled:
        image, pixel = np.array(bundled.data, dtype=np.float32), float(bundled.voxel_size.x)
    if side:
        image = np.pad(image, [(0, side - length) for length in image.shape], mode="symmetric")
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 4, image.shape)
        with mrcfile.new(os.path.join(folder, f"mic{i}.mrc"), data=(image + noise).astype(np.float32)) as new:
            new.voxel_size = (pixel, pixel, 0)
    return os.path.join(folder, "mic*.mrc")


def _job(system: System, pattern: str, folder: str, wanted: List[str]) -> Job:
    def run() -> Timing:
        if isinstance(system, ProtocolRun):
            return timed_run(lambda home: new_protocol(pattern, home, system.workers), verify=verify)
        home = tempfile.mkdtemp(dir=folder)
        try:
            protocol = prepared(pattern, home)
            todo = [
                (i, tuple(p - 1 for p in step.getPrerequisites()), (pattern, home))
                for i, step in enumerate(protocol.getSteps())
            ]
            timing = system.graph(todo, run_step)
            verify(protocol)
        finally:
            _protocols.clear()
            shutil.rmtree(home)
        return timing

    def verify(protocol: Any) -> None:
        with open(protocol._getPath("defocus.txt"), encoding="utf-8") as f:
            table = f.read()
        wanted[:] = wanted or [table]
        check(table == wanted[0], f"{system.title}: the defoci are others than before:\n{table}\n{wanted[0]}")

    return Job(run, 1, system.runs)


def new_protocol(pattern: str, home: str, workers: int = 1) -> Any:
    """The demo's protocol, before it runs in folder `home`."""
    from mpsteps.demo.protocol import ProtDemo

    return ProtDemo(micrographs=pattern, workingDir=home, numberOfThreads=workers)


_protocols: Dict[str, Any] = {}
"""The protocol object of a folder, for steps that run without mpsteps: all threads share it."""


def prepared(pattern: str, home: str) -> Any:
    """The protocol with its steps inserted and its folders made, as a run would."""
    if home not in _protocols:
        protocol = new_protocol(pattern, home)
        os.makedirs(protocol._getExtraPath(), exist_ok=True)
        protocol._insertAllSteps()
        _protocols[home] = protocol
    return _protocols[home]


def run_step(index: int, prerequisites: Tuple[int, ...], where: Tuple[str, str]) -> None:
    """A step as a call of the protocol's method."""
    protocol = prepared(*where)
    step = protocol.getSteps()[index]
    getattr(protocol, step.funcName.get())(*step.getArgs())


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Measure, print, save."""
    script(argv, __doc__, measure, "micrographs (default: 4)")


if __name__ == "__main__":
    main()
