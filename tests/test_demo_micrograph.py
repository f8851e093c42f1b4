"""mpsteps.demo.micrograph: reading real files of all kinds, and refusing what cannot be processed."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys

import pytest

pytest.importorskip("numpy")
pytest.importorskip("mrcfile")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

import mrcfile
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpsteps.demo import bundled_micrograph
from mpsteps.demo.micrograph import read_info, read_window, tile_starts


def pixels(shape=(40, 60), seed=0):
    return np.random.default_rng(seed).normal(50, 10, shape)


def write(path, data, pixel_size=1.5):
    with mrcfile.new(str(path), data=data) as mrc:
        if pixel_size is not None:
            mrc.voxel_size = pixel_size
    return str(path)


@pytest.mark.parametrize("mode", ["int8", "int16", "uint16", "float32"])
def test_all_modes_of_micrographs_are_read(tmp_path, mode):
    """Whatever the mode, the pixels come as float32 with their values."""
    data = pixels().astype(mode)
    path = write(tmp_path / "mic.mrc", data)

    assert read_info(path) == (path, 40, 60, 1.5)
    image = read_window(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, data.astype(np.float32))


def test_a_window_holds_its_pixels_and_is_cut_at_the_border(tmp_path):
    """Rows and columns count from the file's first pixel."""
    data = pixels().astype(np.float32)
    path = write(tmp_path / "mic.mrc", data)

    np.testing.assert_array_equal(read_window(path, 10, 20, 5, 7), data[10:15, 20:27])
    assert read_window(path, 35, 50, 20, 20).shape == (5, 10)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_files_are_read(tmp_path, compress):
    """As mrcfile reads them: by their first bytes, whatever their name."""
    data = pixels().astype(np.int16)
    path = write(tmp_path / "mic.mrc", data)
    packed = tmp_path / "packed.mrc"
    with open(path, "rb") as file:
        packed.write_bytes(compress(file.read()))

    assert read_info(str(packed)).width == 60
    np.testing.assert_array_equal(read_window(str(packed)), data.astype(np.float32))


def test_a_stack_of_one_image_is_an_image(tmp_path):
    """Some programs write micrographs as stacks with one section."""
    path = write(tmp_path / "mic.mrc", pixels((1, 40, 60)).astype(np.float32))

    assert read_info(path).height == 40
    assert read_window(path).shape == (40, 60)


def test_hot_pixels_are_clipped(tmp_path):
    """A hot pixel would ring through its whole tile's spectrum."""
    data = pixels().astype(np.float32)
    data[7, 9] = 60000

    assert read_window(write(tmp_path / "mic.mrc", data)).max() < 150


def test_the_given_pixel_size_replaces_the_headers(tmp_path):
    """Also where the header has none."""
    path = write(tmp_path / "mic.mrc", pixels().astype(np.float32), pixel_size=None)

    assert read_info(path, 0.83).pixel_size == 0.83


@pytest.mark.parametrize(
    ("data", "pixel_size", "message"),
    [
        (pixels((3, 40, 60)).astype(np.float32), 1.5, "3 sections"),
        (pixels().astype(np.float32), None, "no pixel size"),
        (pixels().astype(np.float32), (1.0, 1.5, 1.0), "not square"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_by_name(tmp_path, data, pixel_size, message):
    """One sentence that names the file."""
    path = write(tmp_path / "bad.mrc", data, pixel_size)

    with pytest.raises(ValueError, match=message) as error:
        read_info(path)
    assert path in str(error.value)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")  # mrcfile, when the test writes them
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pixels((3, 40, 60)).astype(np.float32), "not one image"),
        (np.full((40, 60), 7, np.int16), "constant"),
        (np.where(pixels() > 60, np.nan, 1).astype(np.float32), "NaN"),
        (pixels().astype(np.complex64), "complex"),
    ],
)
def test_pixels_that_cannot_be_used_are_refused_by_name(tmp_path, data, message):
    """One sentence that names the file."""
    path = write(tmp_path / "bad.mrc", data)

    with pytest.raises(ValueError, match=message) as error:
        read_window(path)
    assert path in str(error.value)


def test_a_blank_corner_is_no_blank_micrograph(tmp_path):
    """Motion correction leaves blank borders; a window that lies in one is read."""
    data = pixels().astype(np.float32)
    data[:10] = 0

    assert read_window(write(tmp_path / "mic.mrc", data), 0, 0, 10, 60).max() == 0


@pytest.mark.parametrize("read", [read_info, read_window])
def test_what_is_no_mrc_file_is_refused_by_name(tmp_path, read):
    """A missing file, an empty one, a text."""
    for name, content in (("missing.mrc", None), ("empty.mrc", b""), ("text.mrc", b"not an image\n" * 200)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read(str(path))


def test_a_file_that_is_cut_short_is_refused_by_name(tmp_path):
    """A copy that was interrupted has a good header and too few pixels."""
    path = write(tmp_path / "short.mrc", pixels().astype(np.float32))
    with open(path, "r+b") as file:
        file.truncate(1024 + 40 * 60)

    with pytest.raises(ValueError, match=r"short\.mrc"):
        read_window(path)


@pytest.mark.parametrize("pixel_size", [0, -1.0, float("nan"), float("inf")])
def test_an_impossible_pixel_size_is_refused(pixel_size):
    """Also where the user gives it."""
    with pytest.raises(ValueError, match="pixel size"):
        read_info(bundled_micrograph(), pixel_size)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500))
def test_tiles_cover_the_length_evenly(length, tile, step):
    """From the first pixel to the last, no further apart than asked; too large a tile is refused."""
    if tile > length:
        with pytest.raises(ValueError, match="larger than the image"):
            tile_starts(length, tile, step)
        return
    starts = tile_starts(length, tile, step)

    assert starts[0] == 0
    assert starts[-1] == length - tile
    gaps = np.diff(starts)
    assert ((gaps > 0) & (gaps <= step)).all()


def test_without_its_packages_the_demo_says_what_to_install():
    """One ImportError with the command, whichever package is missing."""
    for package in ("numpy", "scipy", "mrcfile", "matplotlib"):
        code = f"import sys; sys.modules['{package}'] = None; import mpsteps.demo"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

        assert done.returncode == 1
        assert f'ImportError: mpsteps.demo needs {package}: pip install "mpsteps[demo]"' in done.stderr


def test_the_bundled_micrograph_is_small_and_whole():
    """It travels in the wheel."""
    info = read_info(bundled_micrograph())

    assert (info.height, info.width) == (1532, 1480)
    assert read_window(info.path).std() > 10
