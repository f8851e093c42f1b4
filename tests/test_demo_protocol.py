"""mpsteps.demo.protocol: the demo's protocol, from its form to its files, inline and in worker processes."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("numpy")
pytest.importorskip("scipy")
pytest.importorskip("mrcfile")
pytest.importorskip("matplotlib")

import mrcfile
import numpy as np

from mpsteps.demo import bundled_micrograph, star
from mpsteps.demo.micrograph import read_window
from mpsteps.demo.protocol import ProtDemo, format_defocus_table

PIXEL_SIZE = 2.1344


def write(path, data, pixel_size=PIXEL_SIZE):
    with mrcfile.new(str(path), data=data) as mrc:
        mrc.voxel_size = pixel_size
    return str(path)


@pytest.fixture
def micrographs(tmp_path):
    """A folder with two parts of the bundled micrograph, of unlike size and mode."""
    image = read_window(bundled_micrograph())
    write(tmp_path / "left.mrc", image[:1000, :700].astype(np.int16))
    write(tmp_path / "right.mrc", image[:900, 680:] * 0.1 + 3)
    return tmp_path


def demo(folder, **values):
    values.setdefault("micrographs", str(folder / "*.mrc"))
    values.setdefault("workingDir", str(folder / "run"))
    return ProtDemo(tileSize=384, **values)


def run(folder, engine, **values):
    prot = demo(folder, **values)
    prot.run(engine=engine)
    assert prot.isFinished(), prot.getErrorMessage()
    return prot


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_the_demo_finds_defocus_and_particles(micrographs, engine):
    """One row and one file of coordinates for each micrograph, two pictures of each, and the table."""
    prot = run(micrographs, engine, numberOfThreads=2)
    rows = {row["micrograph"]: row for row in prot.defocusRows}

    assert sorted(rows) == ["left", "right"]
    for name, row in rows.items():
        assert 9500 < (row["defocusU"] + row["defocusV"]) / 2 < 11500
        picks = star.read_star(prot._getExtraPath(f"{name}_picks.star"))
        assert len(picks) == row["particles"] > 20
        assert {mic for _, mic in picks} == {str(micrographs / f"{name}.mrc")}
        for picture in ("ctf", "picks"):
            assert os.path.getsize(prot._getExtraPath(f"{name}_{picture}.png")) > 10000
    with open(prot._getPath("defocus.txt"), encoding="utf-8") as file:
        assert file.read() == format_defocus_table(prot.defocusRows) + "\n"


def test_worker_processes_change_no_result(micrographs):
    """Attributes that steps write come home whole: the same rows and picks as in one process."""
    inline = run(micrographs, "inline")
    parallel = run(micrographs, "processes", numberOfThreads=2, workingDir=str(micrographs / "run2"))

    assert parallel.picks == inline.picks
    assert sorted(parallel.ctf) == sorted(inline.ctf)
    for name, fit in inline.ctf.items():  # BLAS rounds by its number of threads, which workers are given their share of
        assert parallel.ctf[name] == pytest.approx(fit, rel=1e-4)
    assert format_defocus_table(parallel.defocusRows) == format_defocus_table(inline.defocusRows)


def test_steps_wait_for_nothing_but_what_they_need(micrographs):
    """Spectra and picking wait for nothing, a fit for its micrograph's spectra, pictures for what they show, the
    output for all but the spectra."""
    prot = demo(micrographs)
    prot._insertAllSteps()
    steps = {step.getObjId(): step for step in prot.getSteps()}
    needs = {i: sorted(int(p) for p in step.getPrerequisites()) for i, step in steps.items()}
    names = {i: str(step.funcName) for i, step in steps.items()}

    for i, name in names.items():
        needed = {names[p] for p in needs[i]}
        expected = {
            "fitCtfStep": {"tileSpectraStep"},
            "drawSpectrumStep": {"fitCtfStep"},
            "drawPicksStep": {"pickTileStep"},
            "createOutputStep": {"fitCtfStep", "pickTileStep", "drawSpectrumStep", "drawPicksStep"},
        }
        assert needed == expected.get(name, set())
    assert list(names.values()).count("fitCtfStep") == 2
    assert needs[max(needs)] == [i for i, name in names.items() if name not in ("tileSpectraStep", "createOutputStep")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minDefocus": 20000.0, "maxDefocus": 10000.0}, "smaller than the largest"),
        ({"micrographs": "/nowhere/*.mrc"}, "No file matches /nowhere/"),
        ({"tileSize": 2048}, "tile of 2048 pixels is larger than the image"),
        ({"particleDiameter": 3.0}, "less than 4 pixels"),
        ({"pixelSize": -1.0}, "pixel size"),
        ({"pickingThreshold": 2.0}, "threshold"),
    ],
)
def test_values_that_cannot_work_are_refused_before_any_step(values, message):
    """Each with a sentence that says which and why."""
    errors = ProtDemo(**values).validate()

    assert any(message.lower() in error.lower() for error in errors), errors


def test_files_that_cannot_be_used_are_named_before_any_step(micrographs):
    """A text file, a stack, and two files with one name."""
    (micrographs / "text.mrc").write_text("not an image " * 200)
    write(micrographs / "stack.mrc", np.zeros((3, 500, 500), np.int8))
    write(micrographs / "left.mrcs", np.zeros((500, 500), np.int8))

    errors = "\n".join(demo(micrographs, micrographs=str(micrographs / "*.mrc*")).validate())
    assert "text.mrc: is not an MRC file" in errors
    assert "stack.mrc: holds 3 sections" in errors
    assert "Two micrographs are called left" in errors


def test_the_demo_as_it_stands_is_valid():
    """Its defaults are the bundled micrograph's."""
    assert ProtDemo().validate() == []


def test_a_micrograph_without_contrast_fails_its_step_by_name(tmp_path):
    """The message of the protocol names the file."""
    write(tmp_path / "blank.mrc", np.full((500, 500), 7, np.int8))
    prot = demo(tmp_path)
    prot.run(engine="inline")

    assert prot.isFailed()
    assert "blank.mrc" in prot.getErrorMessage()


def test_the_table_is_aligned_and_has_units():
    """A row for each micrograph, a dash where no ring fits."""
    row = {
        "micrograph": "mic_0001", "defocusU": 10651.2, "defocusV": 10442.0, "astigmatism": 209.2, "angle": -54.25,
        "score": 0.148, "resolution": 4.66, "particles": 109,
    }  # fmt: skip
    lines = format_defocus_table([row, dict(row, micrograph="m", resolution=None)]).split("\n")

    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:4] == ["micrograph", "defocus", "U", "[A]"]
    assert lines[1].split() == ["mic_0001", "10651", "10442", "209", "-54.2", "0.148", "4.7", "109"]
    assert lines[2].split()[-2] == "-"
