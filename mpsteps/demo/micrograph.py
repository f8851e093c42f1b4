"""Reading micrographs: the header, a window of the image, and where tiles lie in it.

Steps run in different processes, so each reads for itself what it needs: files are memory-mapped and a step touches
only its own rows. Every way in which a file can be unfit ends here in one `ValueError` that names the file.

Coordinates are pixels, (row, column) counted from the first pixel of the file, as RELION counts them.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal, NamedTuple

import mrcfile
import numpy as np
import numpy.typing as npt

__all__ = ["MicrographInfo", "read_info", "read_window", "tile_starts"]

Image = npt.NDArray[np.float32]

# A pixel further than this from the median (in robust sigmas) is a hot pixel or an X-ray, not a specimen.
OUTLIER_SIGMAS = 8.0

# The modes of MRC2014 and its extensions: the fourth number of the header, and the one that no other file has.
MODES = (0, 1, 2, 3, 4, 6, 12, 101)
BYTE_ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")
HEADER_START = 16  # bytes up to and with the mode


class MicrographInfo(NamedTuple):
    """What the header says: `height` and `width` in pixels, `pixel_size` in Angstrom."""

    path: str
    height: int
    width: int
    pixel_size: float


def read_info(path: str, pixel_size: float | None = None) -> MicrographInfo:
    """The size and pixel size of an MRC file, from its header alone.

    `pixel_size` (A) replaces the header's. Raises `ValueError`, naming the file, when it is no MRC file, not one
    image, or gives no usable pixel size.
    """
    with _open(path, header_only=True) as mrc:
        header = mrc.header
        width, height, sections = int(header.nx), int(header.ny), int(header.nz)
        voxel = (float(mrc.voxel_size.x), float(mrc.voxel_size.y))
    if sections != 1:
        raise ValueError(f"{path}: holds {sections} sections, not one image: give aligned and summed micrographs")
    if height < 1 or width < 1:
        raise ValueError(f"{path}: the header says the image has {width} x {height} pixels")
    if pixel_size is None:
        pixel_size = _header_pixel_size(path, *voxel)
    elif not 0 < pixel_size < float("inf"):
        raise ValueError(f"{path}: a pixel size of {pixel_size} A is not possible: give a positive number")
    return MicrographInfo(path, height, width, float(pixel_size))


def read_window(
    path: str, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
) -> Image:
    """A window of the micrograph as float32, shape (height, width), hot pixels clipped; by default all of it.

    The window is cut at the image's border. Raises `ValueError`, naming the file, when it holds anything but one
    two-dimensional image of finite real numbers, or when the whole image is constant.
    """
    with _open(path) as mrc:
        data = mrc.data
        if data is None:
            raise ValueError(f"{path}: the image is cut short or its mode is unknown: copy the file again")
        if data.ndim == 3 and data.shape[0] == 1:
            data = data[0]
        if data.ndim != 2:
            raise ValueError(f"{path}: shape {data.shape} is not one image: give aligned and summed micrographs")
        if np.iscomplexobj(data):
            raise ValueError(f"{path}: holds complex numbers, not an image")
        bottom = data.shape[0] if height is None else top + height
        right = data.shape[1] if width is None else left + width
        window = np.array(data[max(top, 0) : bottom, max(left, 0) : right], dtype=np.float32)
        if window.size == 0:
            raise ValueError(f"{path}: no pixel lies in rows {top} to {bottom}, columns {left} to {right}")
        if not np.isfinite(window).all():
            raise ValueError(f"{path}: holds NaN or infinite pixels: replace them before processing")
        # A blank corner is allowed, a blank micrograph is not; the whole is only read where a window looks blank.
        if window.min() == window.max() and data.min() == data.max():
            raise ValueError(f"{path}: the image is constant (every pixel is {float(window.flat[0]):g})")
    return _clip_outliers(window)


def tile_starts(length: int, tile: int, step: int) -> list[int]:
    """First pixels of tiles of `tile` pixels that cover `length`, at most `step` apart and evenly spread.

    The first is 0, the last `length - tile`. Raises `ValueError` for a tile longer than `length`.
    """
    if tile > length:
        raise ValueError(f"a tile of {tile} pixels is larger than the image ({length} pixels): choose a smaller tile")
    intervals = -(-(length - tile) // step)
    return [round(i * (length - tile) / intervals) for i in range(intervals + 1)] if intervals else [0]


def _open(path: str, header_only: bool = False) -> Any:
    """The file opened by mrcfile, memory-mapped where it is not compressed; `ValueError` for what is no MRC file."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(HEADER_START)
    compressed = start[:2] in (b"\x1f\x8b", b"BZ")
    # mrcfile believes any header, and would read gigabytes of "extended header" from a text file.
    modes = [int.from_bytes(start[12:], order) for order in BYTE_ORDERS] if len(start) == HEADER_START else []
    if not compressed and not set(modes) & set(MODES):
        raise ValueError(f"{path}: is not an MRC file")
    with warnings.catch_warnings():
        # mrcfile warns about every small oddity of a header; what matters here is checked by the callers.
        warnings.simplefilter("ignore")
        try:
            if header_only or compressed:
                return mrcfile.open(path, permissive=True, header_only=header_only)
            return mrcfile.mmap(path, permissive=True)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as an MRC file ({error})") from error


def _header_pixel_size(path: str, x: float, y: float) -> float:
    if not (0 < x < float("inf") and 0 < y < float("inf")):
        raise ValueError(f"{path}: the header gives no pixel size: set the pixel size in the form")
    if abs(x - y) > 0.01 * x:
        raise ValueError(f"{path}: pixels of {x:g} x {y:g} A are not square: set the pixel size in the form")
    return x


def _clip_outliers(image: Image) -> Image:
    median = np.median(image)
    # Images of few counts have most pixels on one value: their median deviation is 0 and the plain one must do.
    sigma = 1.4826 * np.median(np.abs(image - median)) or float(image.std())
    clipped: Image = np.clip(image, median - OUTLIER_SIGMAS * sigma, median + OUTLIER_SIGMAS * sigma)
    return clipped
