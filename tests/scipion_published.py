"""Runs unmodified protocols of published plug-ins on simulated tomograms, in threads or in processes.

    python scipion_published.py threads|processes FOLDER

Needs scipion-em, scipion-em-tomo and scipion-em-tomosegmemtv (none of their programs). Prints nothing; what came of it,
with the checksums of the volumes, is in FOLDER/outcomes.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

import scipion_run

N = 4
MAKER = '''
import mrcfile
import numpy as np
from pwem.protocols import EMProtocol
from tomo.objects import SetOfTomograms, SetOfTomoMasks, Tomogram, TomoMask


class ProtMakeTomos(EMProtocol):
    """Tomograms of noise and masks of half their size, or of their own."""

    _label = "make tomograms"

    def _insertAllSteps(self):
        self._insertFunctionStep(self.createOutputStep)

    def _write(self, name, data, rate):
        path = self._getExtraPath(name)
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(data)
            mrc.voxel_size = rate
        return path

    def createOutputStep(self):
        random = np.random.RandomState(1)
        tomograms = SetOfTomograms.create(self._getPath(), template="tomograms%s.sqlite")
        masks = SetOfTomoMasks.create(self._getPath(), template="masks%s.sqlite")
        small = SetOfTomoMasks.create(self._getExtraPath(), template="small%s.sqlite")
        for items, rate in ((tomograms, 5.0), (masks, 5.0), (small, 10.0)):
            items.setSamplingRate(rate)
        for i in range(NUMBER):
            tsId = "TS_%02d" % i
            volume = random.rand(24, 48, 48).astype("float32")
            mask = np.zeros((24, 48, 48), dtype="int8")
            mask[4:20, 8 + i : 40, 8:40] = 1
            for items, cls, name, data, rate in (
                (tomograms, Tomogram, tsId + ".mrc", volume, 5.0), (masks, TomoMask, tsId + "_mask.mrc", mask, 5.0),
                (small, TomoMask, tsId + "_small.mrc", mask[::2, ::2, ::2].copy(), 10.0),
            ):
                item = cls()
                item.setLocation(self._write(name, data, rate))
                item.setTsId(tsId)
                item.setSamplingRate(rate)
                if cls is TomoMask:
                    item.setVolName(self._getExtraPath(tsId + ".mrc"))
                items.append(item)
        for items in (tomograms, masks, small):
            items.write()
        self._defineOutputs(tomograms=tomograms, masks=masks, small=small)
'''


def install(folder):
    """The plug-in that makes the input."""
    scipion_run.install(folder)
    package = os.path.join(folder, "scipionshapes")
    os.makedirs(os.path.join(folder, "programs"), exist_ok=True)  # in the place of tomosegmemtv's, which are not used
    with open(os.path.join(package, "protocols.py"), "w") as f:
        f.write(MAKER.replace("NUMBER", str(N)))


def checksums(prot):
    """Of all volumes in a run's `extra`."""
    found = {}
    for name in sorted(os.listdir(prot._getExtraPath())):
        if name.endswith(".mrc"):
            with open(prot._getExtraPath(name), "rb") as f:
                f.seek(1024)  # the header has the time
                found[name] = hashlib.sha256(f.read()).hexdigest()[:16]
    return found


def main(kind, folder):
    import logging

    from pwem import Domain
    from pyworkflow.project import Project
    from pyworkflow.protocol import HostConfig

    scipion_run.shorten_pauses()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    HostConfig.writeBasic(os.path.join(folder, "home", "config", "hosts.conf"))
    project = Project(Domain, path=os.path.join(folder, "project"))
    project.create()
    protocols = Domain.getProtocols()
    maker = project.newProtocol(protocols["ProtMakeTomos"])
    scipion_run._run(project, maker, kind)
    found = {}
    for name, values in (
        ("ProtTomoApplyTomoMask", {"inTomoSet": maker.tomograms, "inMaskSet": maker.masks, "dilationPixels": 2}),
        ("ProtResizeSegmentedVolume", {"inTomoMasks": maker.small, "inTomos": maker.tomograms}),
    ):
        for _ in range(5):
            prot = project.newProtocol(protocols[name], numberOfThreads=3, **values)
            done, seconds = scipion_run._run(project, prot, kind)
            found[name] = {**scipion_run.describe(done), "volumes": checksums(done)}
            if kind == "processes" or done.isFailed() or scipion_run.is_told(found[name]):
                break
        print(name, kind, f"{seconds:.2f} s")
    with open(os.path.join(folder, "outcomes.json"), "w") as f:
        json.dump(found, f, sort_keys=True, indent=1)


if __name__ == "__main__":
    main(sys.argv[1], os.path.abspath(sys.argv[2]))
