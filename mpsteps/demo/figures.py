"""The two pictures by which a microscopist judges the result at a glance: the rings and the picks.

Drawn with `matplotlib.figure.Figure` on the Agg canvas and never with pyplot: no display, no global state, so that
pictures can be drawn in any process.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from scipy import ndimage

from mpsteps.demo.ctf import CtfFit, Optics, flatten, ring_profile
from mpsteps.demo.picking import Pick

__all__ = ["draw_picks", "draw_spectrum"]

Array = npt.NDArray[np.float64]

DPI = 110
ANGULAR_SMOOTHING = 5.0  # degrees (sigma) along the rings of the measured half
MEASURED, MODEL, MARK = "#333333", "#d1495b", "#00a6a6"


def draw_spectrum(path: str, spectrum: Array, pixel_size: float, optics: Optics, fit: CtfFit, title: str) -> None:
    """PNG of the spectrum (left half measured, right half model) and of the rings' profile with the fitted curve.

    `spectrum` as in `mpsteps.demo.ctf`, `pixel_size` in A.
    """
    figure = Figure(figsize=(12.4, 5.6), constrained_layout=True)
    picture, curve = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.25]})
    _draw_rings(picture, spectrum, pixel_size, optics, fit)
    _draw_profile(curve, spectrum, pixel_size, optics, fit)
    figure.suptitle(
        f"{title}:  defocus U {fit.defocus_u:.0f} A, V {fit.defocus_v:.0f} A, angle {fit.angle:.1f}\N{DEGREE SIGN}, "
        f"score {fit.score:.3f}"
    )
    _save(figure, path)


def draw_picks(
    path: str,
    image: npt.NDArray[np.float32],
    pixel_size: float,
    picks: Sequence[Pick],
    diameter: float,
    title: str,
) -> None:
    """PNG of the low-pass filtered micrograph with a circle of `diameter` (A) around each pick, and a scale bar."""
    height, width = image.shape
    shrink = max(1, min(height, width) // 700)
    small = image[: height // shrink * shrink, : width // shrink * shrink]
    small = small.reshape(height // shrink, shrink, width // shrink, shrink).mean(axis=(1, 3))
    filtered = _band_pass(small, 0.07 * diameter / pixel_size / shrink, 3 * diameter / pixel_size / shrink)
    low, high = np.percentile(filtered, [0.5, 99.5])
    extent = (-0.5, filtered.shape[1] * shrink - 0.5, filtered.shape[0] * shrink - 0.5, -0.5)
    figure = Figure(figsize=(8.4, 7.75 * height / width + 0.75), constrained_layout=True)
    axes = figure.subplots()
    axes.imshow(filtered, cmap="gray", vmin=low, vmax=high, extent=extent)
    if picks:
        size = [diameter / pixel_size] * len(picks)
        circles = EllipseCollection(
            size,
            size,
            [0.0] * len(picks),
            units="xy",
            offsets=[(pick.x, pick.y) for pick in picks],
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors="#ffd23f",
            linewidths=1.3,
            zorder=3,
        )
        axes.add_collection(circles)
    _draw_scale_bar(axes, width, height, pixel_size)
    axes.set_title(f"{title}:  {len(picks)} particles of {diameter:g} A")
    axes.set_xlabel("x (pixels)")
    axes.set_ylabel("y (pixels)")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    _save(figure, path)


def _draw_rings(axes: Axes, spectrum: Array, pixel_size: float, optics: Optics, fit: CtfFit) -> None:
    measured, model, nyquist = flatten(spectrum, pixel_size, optics, fit)
    middle = measured.shape[0] // 2
    # The rings are equally spaced in k^2: this is their distance, in squared pixels of the spectrum.
    ring = (measured.shape[0] * pixel_size) ** 2 / (optics.wavelength * fit.defocus)
    left_half = np.arange(measured.shape[1])[None, :] < middle
    both = np.where(left_half & np.isfinite(model), _clear_rings(measured, ring), model)
    axes.set_facecolor("#808080")
    edge = nyquist + 0.5 * nyquist / middle
    axes.imshow(both, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(-edge, edge, -edge, edge))
    limit = 1.03 * nyquist * (np.flatnonzero(np.isfinite(model[middle])).max() - middle + 1) / middle
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.axvline(0, color=MARK, linewidth=0.8)
    if np.isfinite(fit.resolution):
        axes.add_patch(Circle((0, 0), 1 / fit.resolution, fill=False, edgecolor=MARK, linestyle="--", linewidth=1.2))
    axes.set_title("measured (smoothed along the rings)  |  model", fontsize=11)
    axes.set_xlabel("spatial frequency (1/A)")


def _clear_rings(measured: Array, ring: float) -> Array:
    """The measured rings without background (0 to 1), a little smoothed along each circle.

    The grey scale is set by the noise at each radius, so that rings which are stronger than it are black and white and
    noise remains grey specks: it must not look like rings. `ring` is the distance of the rings in squared pixels.
    """
    middle = measured.shape[0] // 2
    squares = np.linspace(0, middle**2, 4 * middle)  # of the radius: in this coordinate all rings are equally wide
    width = max(2, round(ring / squares[1]))
    angles = np.radians(np.arange(720) / 2)
    around = np.stack([np.sin(angles)[:, None] * np.sqrt(squares), np.cos(angles)[:, None] * np.sqrt(squares)]) + middle
    inside = np.isfinite(measured)
    values, weight = (
        ndimage.map_coordinates(ndimage.gaussian_filter(plane, 1.0), around, order=1, mode="nearest")
        for plane in (np.where(inside, measured, 0.0), inside.astype(np.float64))
    )
    polar = ndimage.gaussian_filter1d(values / np.maximum(weight, 0.05), ANGULAR_SMOOTHING * 2, axis=0, mode="wrap")
    polar -= ndimage.uniform_filter1d(polar, width, axis=1)  # the mean over just one ring
    # What changes quickly with the angle is noise: astigmatic rings change twice around the circle.
    noise = (polar - ndimage.gaussian_filter1d(polar, 60, axis=0, mode="wrap")).std(axis=0)
    noise = np.maximum(ndimage.uniform_filter1d(noise, 2 * width), 1e-12)
    y, x = np.indices(measured.shape) - middle
    where = np.stack([np.degrees(np.arctan2(y, x)) % 360 * 2, (y**2 + x**2) / squares[1]])
    grey = np.clip(0.5 + polar / (6 * noise), 0, 1)
    return np.asarray(ndimage.map_coordinates(grey, where, order=1, mode="grid-wrap"))


def _draw_profile(axes: Axes, spectrum: Array, pixel_size: float, optics: Optics, fit: CtfFit) -> None:
    k, measured, model, _ = ring_profile(spectrum, pixel_size, optics, fit)
    axes.plot(k, measured, color=MEASURED, linewidth=1.1, label="measured, averaged along the rings")
    axes.plot(k, model, color=MODEL, linewidth=1.6, label="fitted CTF\N{SUPERSCRIPT TWO}, scaled to the rings nearby")
    if np.isfinite(fit.resolution):
        reach = f"fits to {fit.resolution:.1f} A"
        axes.axvline(1 / fit.resolution, color=MARK, linestyle="--", linewidth=1.2, label=reach)
    low, high = np.percentile(np.concatenate([measured[3:], model]), [0, 100])
    axes.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))
    axes.set_xlim(k[0], k[-1])
    axes.set_xlabel("spatial frequency (1/A)")
    axes.set_ylabel("log power above background")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", framealpha=0.9, edgecolor="none")
    top = axes.secondary_xaxis("top")
    resolutions = [value for value in (30, 20, 15, 10, 8, 7, 6, 5, 4) if k[0] <= 1 / value <= k[-1]]
    top.set_xticks([1 / value for value in resolutions], [str(value) for value in resolutions])
    top.set_xlabel("resolution (A)")


def _draw_scale_bar(axes: Axes, width: int, height: int, pixel_size: float) -> None:
    """A bar of a round length of about a fifth of the picture, on a dark ground so that it can be read anywhere."""
    wanted = 0.2 * width * pixel_size
    power = 10 ** np.floor(np.log10(wanted))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= wanted))
    bar, x, y = length / pixel_size, 0.04 * width, 0.955 * height
    ground = (x - 0.015 * width, y - 0.04 * height)
    axes.add_patch(Rectangle(ground, bar + 0.03 * width, 0.06 * height, facecolor="black", alpha=0.7, zorder=4))
    axes.add_patch(Rectangle((x, y), bar, 0.008 * height, facecolor="white", zorder=4))
    label = f"{length / 10:g} nm" if length >= 10 else f"{length:g} A"
    axes.text(x + bar / 2, y - 0.004 * height, label, color="white", ha="center", va="bottom", zorder=4)


def _band_pass(image: npt.NDArray[np.float32], fine: float, coarse: float) -> Array:
    """Without what is finer than `fine` or coarser than `coarse` (pixels): noise, and the ice's gradient."""
    pixels = image.astype(np.float64)
    width = max(2, round(coarse))
    # Box filters take the same time for any width; a Gaussian as wide as two particles takes a minute.
    background = ndimage.uniform_filter(ndimage.uniform_filter(pixels, width), width)
    return np.asarray(ndimage.gaussian_filter(pixels, fine, truncate=3) - background)


def _save(figure: Figure, path: str) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, format="png")
