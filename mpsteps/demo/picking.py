"""Particle picking: normalised correlation with discs and ellipses of about the particle's size, tile by tile.

The image is averaged down until a particle is some twelve pixels wide; around every pixel the local neighbourhood,
brought to mean 0 and standard deviation 1, is correlated with dark discs of three sizes, for round views, and with
ellipses in six directions, for elongated ones (Roseman 2003, Ultramicroscopy 94, 225-236). The score lies between -1
and 1 and needs no statistics of the whole micrograph.

That, and tiles that begin on a common grid of averaged pixels, makes the result independent of the tiling: tiles lie
side by side and overlap by the margin with which they are read, so each place is judged once and from the same pixels
as in the whole image; `merge_picks` then thins out what lies too close, also across the tiles' borders.

Units: positions in pixels of the micrograph, as (x, y) from the centre of the first pixel; diameters in Angstrom.
"""

from __future__ import annotations

import math
from typing import Iterable, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

__all__ = ["Pick", "TileWindow", "binning", "merge_picks", "pick_tile", "tile_corners", "tile_window"]

Array = npt.NDArray[np.float64]

PIXELS_PER_PARTICLE = 12  # enough to tell a disc from its surroundings, few enough to average the noise
DISC_SIZES = (0.8, 1.0, 1.2)  # of the given diameter: nobody knows it exactly, and views differ
ELLIPSE = (1.1, 0.6)  # axes, in diameters
DIRECTIONS = range(0, 180, 30)  # of the ellipse's long axis, in degrees
SURROUNDINGS = 0.8  # radius of the neighbourhood, in diameters: the disc and a rim of background
MIN_DISTANCE = 0.6  # of two particles, in diameters: closer ones are one particle seen twice


class Pick(NamedTuple):
    """A particle: its centre in pixels (`x` along the row, `y` down the rows of the file), and score (-1 to 1)."""

    x: float
    y: float
    score: float


class TileWindow(NamedTuple):
    """Pixels to read for a tile, margin included: first row and column, number of rows and columns."""

    top: int
    left: int
    height: int
    width: int


def binning(pixel_size: float, diameter: float) -> int:
    """How many pixels are averaged along each axis before the search, so that a particle has about 12."""
    if not (pixel_size > 0 and diameter > 0):
        raise ValueError(f"a particle of {diameter:g} A in pixels of {pixel_size:g} A is not possible")
    if diameter < 4 * pixel_size:
        raise ValueError(f"a particle of {diameter:g} A is less than 4 pixels of {pixel_size:g} A: nothing to see")
    return max(1, int(diameter / (PIXELS_PER_PARTICLE * pixel_size)))


def tile_corners(height: int, width: int, tile: int, pixel_size: float, diameter: float) -> list[tuple[int, int]]:
    """(row, column) of the first pixels of the tiles of about `tile` pixels that cover the image side by side."""
    binned = binning(pixel_size, diameter)
    step = max(1, tile // binned) * binned
    return [(top, left) for top in range(0, height, step) for left in range(0, width, step)]


def tile_window(
    top: int, left: int, height: int, width: int, tile: int, pixel_size: float, diameter: float
) -> TileWindow:
    """The window to read for the tile at (`top`, `left`) of an image of `height` x `width` pixels."""
    binned = binning(pixel_size, diameter)
    # The neighbourhood, and one pixel more for the neighbours to which a maximum on the tile's border is compared.
    margin = (_radius(pixel_size, diameter) + 1) * binned
    size = max(1, tile // binned) * binned
    first_row, first_column = max(0, top - margin), max(0, left - margin)
    last_row, last_column = min(height, top + size + margin), min(width, left + size + margin)
    return TileWindow(first_row, first_column, last_row - first_row, last_column - first_column)


def pick_tile(
    image: npt.NDArray[np.float32], window: TileWindow, pixel_size: float, diameter: float, threshold: float
) -> list[Pick]:
    """Dark particles in the pixels of a window, in coordinates of the whole micrograph, best first.

    `threshold`: the lowest score (0 to 1; 0.2 to 0.4 is usual). Only places of the tile itself are
    judged, not of its margin; nor are particles nearer to the micrograph's border than 0.8 diameters.
    """
    binned = binning(pixel_size, diameter)
    rows, columns = image.shape[0] // binned, image.shape[1] // binned
    radius = _radius(pixel_size, diameter)
    if min(rows, columns) < 2 * radius + 3:
        return []
    small = image[: rows * binned, : columns * binned].astype(np.float64)
    small = small.reshape(rows, binned, columns, binned).mean(axis=(1, 3))
    scores = _template_scores(small, radius, diameter / (pixel_size * binned))
    found = []
    for row, column in _maxima(scores, threshold):
        y = row + radius + _vertex(*scores[row - 1 : row + 2, column])
        x = column + radius + _vertex(*scores[row, column - 1 : column + 2])
        # The centre of an averaged pixel lies (binned - 1) / 2 pixels behind its first pixel's centre.
        centre = (binned - 1) / 2
        found.append(
            Pick(
                round(window.left + x * binned + centre, 2),
                round(window.top + y * binned + centre, 2),
                round(float(scores[row, column]), 4),
            )
        )
    return sorted(found, key=_best_first)


def merge_picks(picks: Iterable[Pick], distance: float) -> list[Pick]:
    """The picks of all tiles without those within `distance` pixels of a better one, best first.

    The result depends on the set of picks only, not on the order or the number of times in which they come: equal
    scores are ordered by place.
    """
    kept: list[Pick] = []
    places = np.empty((0, 2))
    for pick in sorted({Pick(*pick) for pick in picks}, key=_best_first):
        offsets = places[: len(kept)] - (pick.x, pick.y)
        if not kept or (offsets**2).sum(axis=1).min() >= distance**2:
            if len(kept) == len(places):
                places = np.concatenate([places, np.empty((max(64, len(places)), 2))])
            places[len(kept)] = pick.x, pick.y
            kept.append(pick)
    return kept


def _best_first(pick: Pick) -> tuple[float, float, float]:
    return -pick.score, pick.y, pick.x


def _radius(pixel_size: float, diameter: float) -> int:
    """Radius of the neighbourhood in averaged pixels."""
    return math.ceil(SURROUNDINGS * diameter / (pixel_size * binning(pixel_size, diameter)))


def _template_scores(image: Array, radius: int, diameter: float) -> Array:
    """The best correlation with the templates at each place whose whole neighbourhood lies in the image.

    Shape: that of `image` less 2 * `radius` along each axis. `radius` and `diameter` in pixels of `image`.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    near = (np.hypot(y, x) <= radius).astype(np.float64)
    count = near.sum()
    image = image - image.mean()
    shape = [fft.next_fast_len(side, real=True) for side in image.shape]
    plain, squared = fft.rfft2(image, shape), fft.rfft2(image**2, shape)
    mean = _correlate(plain, near, image.shape) / count
    deviation = np.sqrt(np.maximum(_correlate(squared, near, image.shape) / count - mean**2, 0))
    # A blank neighbourhood has no contrast: its score is 0, not the quotient of two rounding errors.
    usable = deviation > 1e-4 * max(float(image.std()), 1e-30)
    best = np.full(mean.shape, -1.0)
    for template in _templates(radius, diameter):
        dark = near * (template[near > 0].mean() - template)
        dark /= np.sqrt((dark**2).sum() * count)
        np.maximum(best, _correlate(plain, dark, image.shape) / np.where(usable, deviation, 1.0), out=best)
    return np.where(usable, best, 0.0)


def _templates(radius: int, diameter: float) -> list[Array]:
    """Discs and ellipses of height 1 in squares of side 2 * `radius` + 1, with edges one pixel soft.

    With hard edges the score would jump as a particle moves by half a pixel.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    shapes = [(size, size, 0) for size in DISC_SIZES] + [(*ELLIPSE, angle) for angle in DIRECTIONS]
    templates = []
    for long, short, angle in shapes:
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        stretched = np.hypot((x * cosine + y * sine) / long, (y * cosine - x * sine) / short)
        edge = math.sqrt(long * short) * (diameter / 2 - stretched)
        templates.append(np.asarray(np.clip(0.5 + edge, 0, 1)))
    return templates


def _correlate(image_fft: npt.NDArray[np.complex128], kernel: Array, shape: tuple[int, ...]) -> Array:
    """Correlation with a square kernel where it lies wholly inside an image of `shape`."""
    rows, columns = shape
    side = kernel.shape[0]
    full = [fft.next_fast_len(length, real=True) for length in shape]
    product = fft.irfft2(image_fft * np.conj(fft.rfft2(kernel, full)), full)
    return np.asarray(product[: rows - side + 1, : columns - side + 1])


def _maxima(scores: Array, threshold: float) -> list[tuple[int, int]]:
    """(row, column) of the pixels above the threshold that none of their eight neighbours exceeds."""
    inner = scores[1:-1, 1:-1]
    is_maximum = inner >= threshold
    for dy in range(3):
        for dx in range(3):
            is_maximum &= inner >= scores[dy : dy + inner.shape[0], dx : dx + inner.shape[1]]
    return [(int(row) + 1, int(column) + 1) for row, column in np.argwhere(is_maximum)]


def _vertex(before: float, here: float, after: float) -> float:
    """Where the parabola through three values has its maximum, from -0.5 to 0.5."""
    curvature = before - 2 * here + after
    return 0.5 * float(before - after) / float(curvature) if curvature < 0 else 0.0
