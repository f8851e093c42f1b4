"""The demo: defocus estimation and particle picking on a real cryo-EM micrograph, in parallel steps.

`mpsteps demo` runs `mpsteps.demo.protocol.ProtDemo` on the micrograph that is bundled here. The protocol is also the
example to copy from: the numbers are made by plain functions (`ctf`, `picking`), the protocol only says which step
needs which.

The demo is the one part of mpsteps that needs numpy, scipy, mrcfile and matplotlib. They are looked for here, once,
without importing them: a worker that only picks particles never pays for matplotlib.
"""

from __future__ import annotations

import importlib.util
import os

__all__ = ["bundled_micrograph"]

_missing = [name for name in ("numpy", "scipy", "mrcfile", "matplotlib") if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(f'mpsteps.demo needs {", ".join(_missing)}: pip install "mpsteps[demo]"')


def bundled_micrograph() -> str:
    """The path of the bundled micrograph (MRC, 8 bit, 1480 x 1532 pixels of 2.134 A, 300 kV, Cs 2.7 mm).

    Where it comes from and what its particles are: `data/README.md` beside it.
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "micrograph.mrc")
