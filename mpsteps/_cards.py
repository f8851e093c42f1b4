"""The graphics cards of a machine: which of those that a run names are there, and which of them are the same."""

from __future__ import annotations

import glob
import os
import re
import socket
from typing import Dict, Mapping, Optional, Sequence, Tuple

DEVICES = "/dev/nvidia*"


def cards_here(numbers: Sequence[int], environment: Optional[Mapping[str, str]] = None) -> Dict[int, str]:
    """For each of these numbers that a program here could use: a name that is the same wherever it is the same card.

    What a program calls card 0 is the first of CUDA_VISIBLE_DEVICES, where that is set: by Slurm for a job that has
    asked for cards, or by whoever starts several Dask workers on one machine. Where it is not, cards have the numbers
    of their devices. A machine that shows neither is taken at the run's word, as it is without a cluster.
    """
    environment = os.environ if environment is None else environment
    machine = socket.gethostname()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        if environment.get("SLURM_JOB_GPUS"):  # the job's own: whatever they are called, nobody else has them
            machine += f"/job {environment.get('SLURM_JOB_ID', '')}"
        names = _visible(visible)
        return {n: f"{machine}/{names[n]}" for n in numbers if n < len(names)}
    there = {int(m[1]) for m in map(re.compile(r".*?(\d+)$").match, glob.glob(DEVICES)) if m}
    return {n: f"{machine}/{n}" for n in numbers if n in there or not there}


def _visible(text: str) -> Tuple[str, ...]:
    """The entries of CUDA_VISIBLE_DEVICES: what follows one that is no card does not count."""
    names = []
    for entry in (e.strip() for e in text.split(",")):
        if not re.match(r"\d+$|GPU-|MIG-", entry):
            break
        names.append(entry)
    return tuple(names)
