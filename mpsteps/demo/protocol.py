"""`ProtDemo`: defocus estimation and particle picking, as a parallel protocol. The example to copy from.

For each micrograph the spectra of its tiles are computed in parallel, band by band; a step that waits for all bands
fits the CTF; meanwhile particles are picked tile by tile; two steps draw what was found; one last step waits for
everything and writes the output.

Steps share data in two ways, and both are shown here. Arrays go through files in the run directory. Small results are
written to attributes of the protocol (`self.ctf`, `self.picks`): mpsteps carries them home from the worker process,
merges them by key, and later steps find them there, as they would if steps were threads.
"""

from __future__ import annotations

import glob
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np
import numpy.typing as npt

from mpsteps import STEPS_PARALLEL, FloatParam, IntParam, PathParam, Positive, Protocol, Range
from mpsteps.demo import bundled_micrograph, ctf, picking, star
from mpsteps.demo.micrograph import MicrographInfo, read_info, read_window, tile_starts

if TYPE_CHECKING:
    from mpsteps.scalars import Float, Integer, String

__all__ = ["ProtDemo", "format_defocus_table"]

MAX_PICTURES = 4  # micrographs of which pictures are drawn: they take longer than all the rest


class ProtDemo(Protocol):
    """Estimate the defocus of micrographs and pick their particles."""

    _label = "demo: ctf and picking"
    stepsExecutionMode = STEPS_PARALLEL

    # The params of the form, which become attributes: said here for type checkers only.
    micrographs: String
    pixelSize: Float
    voltage: Float
    sphericalAberration: Float
    amplitudeContrast: Float
    tileSize: Integer
    minDefocus: Float
    maxDefocus: Float
    particleDiameter: Float
    pickingThreshold: Float

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs: list[str] = []  # the micrographs' paths
        self.ctf: dict[str, dict[str, float]] = {}  # micrograph's name: the fields of CtfFit
        self.picks: dict[str, list[list[float]]] = {}  # name and tile: [x, y, score] of each particle
        self.defocusRows: list[dict[str, Any]] = []  # one for each micrograph, see format_defocus_table

    def _defineParams(self, form: Any) -> None:
        form.addSection(label="Input")
        form.addParam("micrographs", PathParam, default=bundled_micrograph(), label="Micrographs",
                      help="An MRC file, or a pattern such as Micrographs/*.mrc")
        form.addParam("pixelSize", FloatParam, default=None, allowsNull=True, label="Pixel size (A)",
                      help="Replaces the pixel size that the files' headers give")
        form.addParam("voltage", FloatParam, default=300.0, validators=[Range(20, 1500)], label="Voltage (kV)",
                      help="Acceleration voltage of the microscope")
        form.addParam("sphericalAberration", FloatParam, default=2.7, validators=[Range(0, 20)], label="Cs (mm)",
                      help="Spherical aberration of the objective lens")
        form.addParam("amplitudeContrast", FloatParam, default=0.07, validators=[Range(0, 1)],
                      label="Amplitude contrast", help="As a fraction: about 0.07 for vitreous ice, 0.2 for stain")

        form.addSection(label="Processing")
        form.addParam("tileSize", IntParam, default=512, validators=[Range(64, 4096)], label="Tile size (pixels)",
                      help="Side of the tiles: of the spectra exactly, of the picking about")
        form.addParam("minDefocus", FloatParam, default=3000.0, validators=[Positive], label="Least defocus (A)",
                      help="Lower end of the search; positive is underfocus")
        form.addParam("maxDefocus", FloatParam, default=50000.0, validators=[Positive], label="Largest defocus (A)",
                      help="Upper end of the search")
        form.addParam("particleDiameter", FloatParam, default=130.0, validators=[Positive],
                      label="Particle diameter (A)", help="About; sizes from 0.8 to 1.2 times this are tried")
        form.addParam("pickingThreshold", FloatParam, default=0.25, validators=[Range(0, 1)],
                      label="Picking threshold", help="Least correlation with a disc or ellipse: lower picks more")
        form.addParallelSection(threads=4)

    def _validate(self) -> list[str]:
        errors = []
        if self.minDefocus >= self.maxDefocus:
            errors.append("The least defocus must be smaller than the largest one.")
        mics = self._listMicrographs()
        if not mics:
            errors.append(f"No file matches {self.micrographs.get()}: give the path of an MRC file or a pattern.")
        names = [_micName(mic) for mic in mics]
        for name in sorted({name for name in names if names.count(name) > 1}):
            errors.append(f"Two micrographs are called {name}: rename one, the outputs carry their names.")
        for mic in mics:
            try:
                info = self._info(mic)
                tile_starts(min(info.height, info.width), self.tileSize.get(), 1)
                picking.binning(info.pixel_size, self.particleDiameter.get())
            except ValueError as error:
                errors.append(str(error) if mic in str(error) else f"{mic}: {error}")
        return errors

    # ------------------------------------------------------------------------- steps

    def _insertAllSteps(self) -> None:
        """A step's arguments are all that its result depends on: after a resume with another threshold, say, only the
        picking and the output run again."""
        self.inputs = self._listMicrographs()  # files that arrive later belong to a later run
        lastSteps = []
        for i, mic in enumerate(self.inputs):
            info = self._info(mic)
            spectra = [self._insertFunctionStep(self.tileSpectraStep, mic, row, self.tileSize.get(),
                                                prerequisites=[], needsGPU=False)
                       for row in self._tileRows(info)]
            fit = self._insertFunctionStep(self.fitCtfStep, mic, info.pixel_size, *self._opticsArgs(),
                                           self.minDefocus.get(), self.maxDefocus.get(),
                                           prerequisites=spectra, needsGPU=False)
            picks = [self._insertFunctionStep(self.pickTileStep, mic, top, left, *self._pickArgs(info),
                                              self.pickingThreshold.get(), prerequisites=[], needsGPU=False)
                     for top, left in self._pickTiles(info)]
            lastSteps += [fit, *picks]
            if i < MAX_PICTURES:
                lastSteps += [
                    self._insertFunctionStep(self.drawSpectrumStep, mic, prerequisites=fit, needsGPU=False),
                    self._insertFunctionStep(self.drawPicksStep, mic, prerequisites=picks, needsGPU=False),
                ]
        self._insertFunctionStep(self.createOutputStep, prerequisites=lastSteps, needsGPU=False)

    def tileSpectraStep(self, mic: str, row: int, tile: int) -> None:
        """The mean power spectrum of the band of overlapping tiles that begins at `row`."""
        band = read_window(mic, top=row, height=tile)
        spectrum = ctf.band_spectrum(band, tile_starts(band.shape[1], tile, tile // 2), tile)
        np.save(self._spectrumPath(mic, row), spectrum)

    def fitCtfStep(self, mic: str, pixelSize: float, voltage: float, cs: float, contrast: float,
                   minDefocus: float, maxDefocus: float) -> None:
        """Defocus and astigmatism from the bands' spectra."""
        optics = ctf.Optics(voltage, cs, contrast)
        fit = ctf.fit_ctf(self._meanSpectrum(mic), pixelSize, optics, (minDefocus, maxDefocus), name=mic)
        self.ctf[_micName(mic)] = asdict(fit)

    def pickTileStep(self, mic: str, top: int, left: int, tile: int, pixelSize: float, diameter: float,
                     threshold: float) -> None:
        """The particles of one tile, which is read with a margin so that none is missed on its border."""
        info = self._info(mic)
        window = picking.tile_window(top, left, info.height, info.width, tile, pixelSize, diameter)
        picks = picking.pick_tile(read_window(mic, *window), window, pixelSize, diameter, threshold)
        self.picks[_tileKey(mic, top, left)] = [list(pick) for pick in picks]

    def drawSpectrumStep(self, mic: str) -> str:
        """The picture of the spectrum with the fitted rings. Returns its path."""
        from mpsteps.demo import figures  # only the steps that draw pay for matplotlib

        path = self._picturePath(mic, "ctf")
        fit, optics = ctf.CtfFit(**self.ctf[_micName(mic)]), ctf.Optics(*self._opticsArgs())
        figures.draw_spectrum(path, self._meanSpectrum(mic), self._info(mic).pixel_size, optics, fit, _micName(mic))
        return path

    def drawPicksStep(self, mic: str) -> str:
        """The picture of the micrograph with the particles. Returns its path."""
        from mpsteps.demo import figures

        path = self._picturePath(mic, "picks")
        size, diameter = self._info(mic).pixel_size, self.particleDiameter.get()
        figures.draw_picks(path, read_window(mic), size, self._mergedPicks(mic), diameter, _micName(mic))
        return path

    def createOutputStep(self) -> list[str]:
        """Merge the tiles' picks; write coordinates and the defocus table. Returns the paths of all outputs."""
        files = []
        rows = []
        for i, mic in enumerate(self.inputs):
            name = _micName(mic)
            fit = ctf.CtfFit(**self.ctf[name])
            picks = self._mergedPicks(mic)
            files.append(self._getExtraPath(f"{name}_picks.star"))
            star.write_star(files[-1], picks, mic)
            rows.append({
                "micrograph": name, "defocusU": fit.defocus_u, "defocusV": fit.defocus_v,
                "astigmatism": fit.astigmatism, "angle": fit.angle, "score": fit.score,
                "resolution": fit.resolution if math.isfinite(fit.resolution) else None, "particles": len(picks),
            })  # fmt: skip
            if i < MAX_PICTURES:
                files += [self._picturePath(mic, "ctf"), self._picturePath(mic, "picks")]
        files.append(self._getPath("defocus.txt"))
        star.write_text(files[-1], format_defocus_table(rows) + "\n")
        self.defocusRows = rows
        return files

    # ------------------------------------------------------------------------- texts

    def _summary(self) -> list[str]:
        if not self.defocusRows:
            return ["Not finished yet."]
        particles = sum(row["particles"] for row in self.defocusRows)
        return [f"{particles} particles in {len(self.defocusRows)} micrographs.",
                *format_defocus_table(self.defocusRows).splitlines()]

    def _citations(self) -> list[str]:
        return ["Rohou2015", "Roseman2003"]

    # ------------------------------------------------------------------------- helpers

    def _listMicrographs(self) -> list[str]:
        pattern = os.path.abspath(self.micrographs.get())
        # A file whose name has brackets is a file first and a pattern second.
        return [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))

    def _info(self, mic: str) -> MicrographInfo:
        return read_info(mic, self.pixelSize.get())

    def _opticsArgs(self) -> tuple[float, float, float]:
        return self.voltage.get(), self.sphericalAberration.get(), self.amplitudeContrast.get()

    def _pickArgs(self, info: MicrographInfo) -> tuple[int, float, float]:
        return self.tileSize.get(), info.pixel_size, self.particleDiameter.get()

    def _tileRows(self, info: MicrographInfo) -> list[int]:
        return tile_starts(info.height, self.tileSize.get(), self.tileSize.get() // 2)

    def _pickTiles(self, info: MicrographInfo) -> list[tuple[int, int]]:
        return picking.tile_corners(info.height, info.width, *self._pickArgs(info))

    def _spectrumPath(self, mic: str, row: int) -> str:
        return str(self._getExtraPath(f"{_micName(mic)}_spectrum_{row}.npy"))

    def _meanSpectrum(self, mic: str) -> npt.NDArray[np.float64]:
        """The mean of the bands, which all have the same number of tiles."""
        bands = [np.load(self._spectrumPath(mic, row)) for row in self._tileRows(self._info(mic))]
        return np.asarray(np.mean(bands, axis=0))

    def _mergedPicks(self, mic: str) -> list[picking.Pick]:
        info = self._info(mic)
        tiles = [self.picks[_tileKey(mic, top, left)] for top, left in self._pickTiles(info)]
        distance = picking.MIN_DISTANCE * self.particleDiameter.get() / info.pixel_size
        return picking.merge_picks([picking.Pick(*pick) for tile in tiles for pick in tile], distance)

    def _picturePath(self, mic: str, what: str) -> str:
        return str(self._getExtraPath(f"{_micName(mic)}_{what}.png"))


def format_defocus_table(rows: Sequence[dict[str, Any]]) -> str:
    """`ProtDemo.defocusRows` as a table for people: defoci, astigmatism and resolution in A, angle in degrees."""
    titles = ("micrograph", "defocus U [A]", "V [A]", "astigm. [A]", "angle", "score", "resol. [A]", "particles")
    lines = [titles] + [
        (
            str(row["micrograph"]), f"{row['defocusU']:.0f}", f"{row['defocusV']:.0f}", f"{row['astigmatism']:.0f}",
            f"{row['angle']:.1f}", f"{row['score']:.3f}",
            "-" if row["resolution"] is None else f"{row['resolution']:.1f}", str(row["particles"]),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])
        for line in lines
    )


def _tileKey(mic: str, top: int, left: int) -> str:
    return f"{_micName(mic)}/{top}/{left}"


def _micName(mic: str) -> str:
    """The file's name without folders and extensions: it names the outputs."""
    name = os.path.basename(mic)
    for extension in (".gz", ".bz2", ".mrc", ".mrcs"):
        name = name[: -len(extension)] if name.endswith(extension) and len(name) > len(extension) else name
    return name
