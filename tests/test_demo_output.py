"""mpsteps.demo.star and mpsteps.demo.figures: what the demo writes."""

from __future__ import annotations

import os
import stat
import struct
import sys

import pytest

pytest.importorskip("numpy")
pytest.importorskip("scipy")
pytest.importorskip("mrcfile")
pytest.importorskip("matplotlib")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from mpsteps.demo import ctf, figures, star
from mpsteps.demo.picking import Pick

LOOP = "loop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnAutopickFigureOfMerit\n_rlnMicrographName\n"
PICKS = [Pick(12.5, 700.25, 0.4321), Pick(0.0, 3.0, 0.2)]


def test_coordinates_return_as_they_were_written(tmp_path):
    """In order, with the micrograph's name."""
    path = str(tmp_path / "mic_picks.star")
    star.write_star(path, PICKS, "Micrographs/mic.mrc")

    assert star.read_star(path) == [(pick, "Micrographs/mic.mrc") for pick in PICKS]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-(10**4), 10**4)), max_size=20))
def test_any_coordinates_return(tmp_path_factory, values):
    """To a hundredth of a pixel and a ten-thousandth of the score, which is how they are written."""
    path = str(tmp_path_factory.mktemp("star") / "x.star")
    picks = [Pick(x / 100, y / 100, score / 10000) for x, y, score in values]
    star.write_star(path, picks, "mic.mrc")

    assert [pick for pick, _ in star.read_star(path)] == picks


def test_the_file_is_what_relion_reads(tmp_path):
    """A data block, a loop, numbered labels, then rows."""
    path = tmp_path / "x.star"
    star.write_star(str(path), PICKS, "mic.mrc")
    lines = path.read_text().split("\n")

    assert lines[:8] == [
        "", "data_", "", "loop_", "_rlnCoordinateX #1", "_rlnCoordinateY #2", "_rlnAutopickFigureOfMerit #3",
        "_rlnMicrographName #4",
    ]  # fmt: skip
    assert [line.split() for line in lines[8:10]] == [
        ["12.50", "700.25", "0.4321", "mic.mrc"],
        ["0.00", "3.00", "0.2000", "mic.mrc"],
    ]


def test_a_name_with_blanks_is_quoted(tmp_path):
    """One value for each column, also for the folder "my data"."""
    path = str(tmp_path / "x.star")
    star.write_star(path, PICKS, "my data/mic #1.mrc")

    assert star.read_star(path)[0][1] == "my data/mic #1.mrc"


@pytest.mark.parametrize("name", ["", "a'b.mrc", 'a"b.mrc', "a\nb.mrc"])
def test_a_name_that_no_star_file_can_hold_is_refused(tmp_path, name):
    """And no file is written."""
    with pytest.raises(ValueError, match="rename"):
        star.write_star(str(tmp_path / "x.star"), PICKS, name)
    assert os.listdir(str(tmp_path)) == []


def test_columns_of_other_programs_are_read_by_their_labels(tmp_path):
    """In any order, with others among them, after comments."""
    path = tmp_path / "x.star"
    path.write_text(
        "# version 30001\n\ndata_particles\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateY #2\n_rlnClassNumber #3\n"
        "_rlnCoordinateX #4\n_rlnAutopickFigureOfMerit #5\nmic.mrc 2.0 7 1.0 0.5\n"
    )

    assert star.read_star(str(path)) == [(Pick(1.0, 2.0, 0.5), "mic.mrc")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_\nloop_\n_rlnCoordinateX #1\n1.0\n", "no column _rlnCoordinateY"),
        ("", "no column _rlnCoordinateX"),
        (LOOP + "1.0 2.0\n", "line 6: 2 values for 4 columns"),
        (LOOP + "1 2 3 m\n1 two 3 m\n", "line 7: .*two"),
    ],
)
def test_a_file_that_is_no_table_of_coordinates_is_refused_by_name(tmp_path, text, message):
    """With the file and, where there is one, the line."""
    path = tmp_path / "bad.star"
    path.write_text(text)

    with pytest.raises(ValueError, match=rf"bad\.star.*{message}"):
        star.read_star(str(path))


def test_a_text_replaces_the_old_one_at_once_and_leaves_nothing_beside_it(tmp_path):
    """No partial file remains, also where the writing failed."""
    path = tmp_path / "defocus.txt"
    star.write_text(str(path), "old")
    star.write_text(str(path), "new")

    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        star.write_text(str(path), "broken \udc80")
    assert path.read_text() == "new"
    assert os.listdir(str(tmp_path)) == ["defocus.txt"]


def png_size(path):
    """(width, height) of a PNG file, from its header."""
    with open(path, "rb") as file:
        head = file.read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.fixture
def fitted():
    """A spectrum with rings of 15000 and 14000 A, and its fit."""
    tile, optics = 256, ctf.Optics()
    ky, kx = np.fft.fftfreq(tile, 2.0)[:, None], np.fft.rfftfreq(tile, 2.0)[None, :]
    rings = ctf.ctf_squared(kx**2 + ky**2, np.arctan2(ky, kx + 0 * ky), optics, 15000, 14000, 20)
    spectrum = (1 + rings) * np.random.default_rng(0).gamma(20, size=rings.shape)
    return spectrum, optics, ctf.fit_ctf(spectrum, 2.0, optics)


def test_the_picture_of_the_rings_is_drawn(tmp_path, fitted):
    """A PNG file that anyone may read who may read the folder."""
    spectrum, optics, fit = fitted
    path = str(tmp_path / "ctf.png")
    figures.draw_spectrum(path, spectrum, 2.0, optics, fit, "mic")

    assert png_size(path) > (1000, 500)
    assert stat.S_ISREG(os.stat(path).st_mode)


def test_the_rings_of_the_picture_are_those_of_the_spectrum(fitted):
    """The smoothing that makes rings visible moves none of them."""
    spectrum, optics, fit = fitted
    measured, model, _ = ctf.flatten(spectrum, 2.0, optics, fit)
    ring = (256 * 2.0) ** 2 / (optics.wavelength * fit.defocus)
    inside = np.isfinite(model)

    assert np.corrcoef(figures._clear_rings(measured, ring)[inside], model[inside])[0, 1] > 0.8


def test_noise_does_not_look_like_rings(fitted):
    """Smoothed along circles, the spectrum of noise still has no rings: the picture must not flatter."""
    _, optics, fit = fitted
    spectrum = np.random.default_rng(1).gamma(20, size=(256, 129))
    measured, model, _ = ctf.flatten(spectrum, 2.0, optics, fit)
    ring = (256 * 2.0) ** 2 / (optics.wavelength * fit.defocus)
    inside = np.isfinite(model)
    picture = figures._clear_rings(measured, ring)

    assert abs(np.corrcoef(picture[inside], model[inside])[0, 1]) < 0.1
    assert (np.abs(picture[inside] - 0.5) < 0.45).mean() > 0.9


@pytest.mark.parametrize("picks", [[], [Pick(100.0, 200.0, 0.5)]])
def test_the_picture_of_the_picks_is_drawn(tmp_path, picks):
    """Also of a micrograph without particles."""
    image = np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32)
    path = str(tmp_path / "picks.png")
    figures.draw_picks(path, image, 2.0, picks, 60.0, "mic")

    width, height = png_size(path)
    assert width > 1.2 * height


def test_a_circle_lies_around_its_particle(tmp_path):
    """A yellow ring at the pick's place: x to the right, y downwards."""
    image = np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)
    path = str(tmp_path / "picks.png")
    figures.draw_picks(path, image, 2.0, [Pick(300.0, 100.0, 0.5)], 80.0, "mic")
    picture = imread(path)[..., :3]
    rows, columns = np.nonzero((picture[..., 0] > 0.8) & (picture[..., 2] < 0.4))
    assert rows.mean() / picture.shape[0] == pytest.approx(0.27, abs=0.05)
    assert columns.mean() / picture.shape[1] == pytest.approx(0.77, abs=0.05)


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path):
    """No pyplot: figures would pile up there, and a display might be looked for."""
    figures.draw_picks(str(tmp_path / "p.png"), np.ones((80, 80), np.float32), 2.0, [], 40.0, "mic")

    assert "matplotlib.pyplot" not in sys.modules
