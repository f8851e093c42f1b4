"""Contrast transfer function: spectra of tiles, the model, and the fit of defocus and astigmatism.

The way of CTFFIND4 (Rohou and Grigorieff 2015, J. Struct. Biol. 192, 216-221): power spectra of overlapping tiles are
averaged, the smooth background is removed and what remains is compared with the rings that the model predicts. First
the mean defocus is searched in the rotational average, then defocus U, V and the angle are refined in two dimensions.

One thing is done differently. CTFFIND subtracts a background estimated beforehand, which bends the rings it is
estimated from. Here both the spectrum and every candidate model are projected onto the complement of the smooth
functions of |k| before they are correlated: whatever a smooth background could explain counts for neither.

Units: defocus in Angstrom (positive: underfocus), spatial frequency k in 1/Angstrom, angle in degrees from the x axis
(columns) towards the y axis (rows), voltage in kV, Cs in mm. A *spectrum* is the mean power of tiles of n x n pixels
in the layout of `scipy.fft.rfft2`: shape (n, n // 2 + 1), zero frequency at [0, 0].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Sequence

import numpy as np
import numpy.typing as npt
from scipy import fft, optimize

__all__ = ["CtfFit", "Optics", "RingProfile", "band_spectrum", "ctf_squared", "fit_ctf", "flatten", "ring_profile"]

Array = npt.NDArray[np.float64]

LOWEST_RESOLUTION = 30.0  # A: below it the particles' own shape drowns the rings
HIGHEST_RESOLUTION = 4.0  # A: beyond it lies the ring of vitreous ice (3.7 A)
SMOOTH_TERMS = 7  # degrees of freedom of the background in |k|
ENVELOPES = (0.0, 50.0, 100.0, 200.0, 400.0, 800.0)  # A^2: candidates for the rings' decay exp(-B k^2 / 2)
ASTIGMATISMS = (300.0, 700.0, 1500.0, 3000.0)  # A: coarse grid of U - V, refined afterwards
ANGLES = range(0, 180, 15)  # degrees: coarse grid
CANDIDATES = 3  # peaks of the one-dimensional search that are refined


@dataclass(frozen=True)
class Optics:
    """The microscope: `voltage` in kV, `cs` (spherical aberration) in mm, `amplitude_contrast` as a fraction."""

    voltage: float = 300.0
    cs: float = 2.7
    amplitude_contrast: float = 0.07

    @property
    def wavelength(self) -> float:
        """Relativistic wavelength of the electrons in Angstrom (0.0197 at 300 kV)."""
        volts = self.voltage * 1e3
        return 12.2643 / math.sqrt(volts * (1 + 0.978466e-6 * volts))

    def phase(self, k2: Array, defocus: Array | float) -> Array:
        """Phase shift chi (radians) at squared frequency `k2` (1/A^2); CTF = -sin(chi). Rohou 2015, eq. 3."""
        wavelength = self.wavelength
        focus = np.asarray(defocus - 0.5 * wavelength**2 * self.cs * 1e7 * k2)
        return np.asarray(math.pi * wavelength * k2 * focus + math.asin(self.amplitude_contrast), dtype=np.float64)


@dataclass(frozen=True)
class CtfFit:
    """The result of a fit.

    `defocus_u` >= `defocus_v` in A; `angle` of U in degrees, -90 <= angle < 90; `score` the correlation of model and
    spectrum (-1 to 1, in two dimensions; 0.1 is a fair micrograph); `resolution` in A up to which the rings agree
    with the model; `envelope` the decay B of the rings in A^2.
    """

    defocus_u: float
    defocus_v: float
    angle: float
    score: float
    resolution: float
    envelope: float

    @property
    def defocus(self) -> float:
        """Mean defocus (A)."""
        return (self.defocus_u + self.defocus_v) / 2

    @property
    def astigmatism(self) -> float:
        """U - V (A), never negative."""
        return self.defocus_u - self.defocus_v


class RingProfile(NamedTuple):
    """Averages along the rings, not along circles, over `k` (1/A).

    `measured`: log power above the background; `ctf2`: CTF^2; `model`: the same with the strength and the level that
    the measured rings have in the two and a half rings around each k.
    """

    k: Array
    measured: Array
    model: Array
    ctf2: Array


def band_spectrum(band: npt.NDArray[np.float32], starts: Sequence[int], tile: int) -> Array:
    """The mean power spectrum of the tiles that begin at columns `starts` of a band of shape (tile, width)."""
    if band.shape[0] != tile:
        raise ValueError(f"a band of {band.shape[0]} rows does not hold tiles of {tile} pixels")
    window = np.hanning(tile + 1)[:-1]
    window = window[:, None] * window[None, :]
    total = np.zeros((tile, tile // 2 + 1))
    for start in starts:
        pixels = band[:, start : start + tile].astype(np.float64)
        total += np.abs(fft.rfft2((pixels - pixels.mean()) * window)) ** 2
    return np.asarray(total / len(starts))


def ctf_squared(k2: Array, theta: Array, optics: Optics, u: float, v: float, angle: float) -> Array:
    """CTF^2 (0 to 1) at squared frequency `k2` (1/A^2) and direction `theta` (radians), any shape."""
    twist = 2 * (theta - math.radians(angle))
    return np.asarray(np.sin(optics.phase(k2, 0.5 * (u + v + (u - v) * np.cos(twist)))) ** 2)


def fit_ctf(
    spectrum: Array,
    pixel_size: float,
    optics: Optics,
    defocus_range: tuple[float, float] = (3000.0, 50000.0),
    name: str = "micrograph",
) -> CtfFit:
    """Fit defocus and astigmatism to a spectrum of tiles; mean defocus is searched within `defocus_range` (A).

    Raises `ValueError`, naming `name`, for a spectrum without power, with NaN, or with pixels too coarse for rings.
    """
    rings = _Rings(spectrum, pixel_size, optics, name)
    best: tuple[float, Array] | None = None
    envelope, candidates = _search_mean_defocus(rings, defocus_range)
    rings.set_envelope(envelope)
    for mean in candidates:
        score, point = _refine(rings, mean)
        inside = defocus_range[0] <= point[0] <= defocus_range[1]
        if inside and (best is None or score > best[0]):
            best = score, point
    if best is None:
        raise ValueError(f"{name}: no defocus between {defocus_range[0]:g} and {defocus_range[1]:g} A fits the rings")
    score, (mean, cosine, sine) = best[0], best[1].tolist()
    half = math.hypot(cosine, sine)
    angle = math.degrees(math.atan2(sine, cosine)) / 2
    fit = CtfFit(mean + half, mean - half, angle if angle < 90 else angle - 180, score, math.inf, envelope)
    resolution = _resolution(_profile(rings, fit), optics, fit.defocus)
    return CtfFit(fit.defocus_u, fit.defocus_v, fit.angle, score, resolution, envelope)


def ring_profile(spectrum: Array, pixel_size: float, optics: Optics, fit: CtfFit) -> RingProfile:
    """The measured and the fitted rings as curves over k, averaged along the (elliptic) rings."""
    return _profile(_Rings(spectrum, pixel_size, optics, "spectrum", fit.envelope), fit)


def flatten(spectrum: Array, pixel_size: float, optics: Optics, fit: CtfFit) -> tuple[Array, Array, float]:
    """Measured and fitted rings as pictures.

    Two arrays of shape (n, n) with the zero frequency at [n // 2, n // 2]: log power above the background, NaN where
    it was not fitted (outside the band, on the axes), and CTF^2, NaN outside the band. The number is the Nyquist
    frequency (1/A), at the pictures' edge.
    """
    rings = _Rings(spectrum, pixel_size, optics, "spectrum", fit.envelope)
    measured = np.full(spectrum.shape, np.nan)
    measured[rings.mask] = rings.above_background(fit)[0]
    tile = spectrum.shape[0]
    ky, kx = fft.fftfreq(tile, pixel_size)[:, None], fft.rfftfreq(tile, pixel_size)[None, :]
    k2, theta = kx**2 + ky**2, np.arctan2(ky, np.broadcast_to(kx, spectrum.shape))
    model = ctf_squared(k2, theta, optics, fit.defocus_u, fit.defocus_v, fit.angle)
    model[(k2 < rings.low**2) | (k2 >= rings.high**2)] = np.nan
    return _whole_plane(measured), _whole_plane(model), 0.5 / pixel_size


class _Rings:
    """The pixels of a spectrum between the lowest and highest resolution, without what is smooth in |k|.

    Invariants: `basis` has orthonormal columns; `data` is orthogonal to them and has length 1.
    """

    def __init__(self, spectrum: Array, pixel_size: float, optics: Optics, name: str, envelope: float = 0.0) -> None:
        tile = spectrum.shape[0]
        if spectrum.shape != (tile, tile // 2 + 1):
            raise ValueError(f"{name}: a spectrum of shape {spectrum.shape} is not that of square tiles")
        if not np.isfinite(spectrum).all():
            raise ValueError(f"{name}: the spectrum holds NaN or infinite values")
        ky, kx = fft.fftfreq(tile, pixel_size)[:, None], fft.rfftfreq(tile, pixel_size)[None, :]
        k2 = kx**2 + ky**2
        self.low = 1 / LOWEST_RESOLUTION
        self.high = min(1 / HIGHEST_RESOLUTION, 0.95 * 0.5 / pixel_size)
        self.bin_width = 1 / (tile * pixel_size)
        if self.high < 2 * self.low or self.high - self.low < 4 * SMOOTH_TERMS * self.bin_width:
            raise ValueError(f"{name}: tiles of {tile} pixels of {pixel_size:g} A resolve no rings between 30 and 4 A")
        # The axes carry the detector's stripes and the tile's border: they are left out, as CTFFIND does.
        self.mask = (k2 >= self.low**2) & (k2 < self.high**2) & (kx != 0) & (ky != 0)
        self.k2 = k2[self.mask]
        self.theta = np.arctan2(ky + 0 * kx, kx + 0 * ky)[self.mask]
        self.optics = optics
        power = spectrum[self.mask]
        if power.max() <= 0:
            raise ValueError(f"{name}: the spectrum is empty: the image is constant")
        self.log_power = np.log(np.maximum(power, 1e-9 * power.mean()))
        self.basis = _smooth_basis(np.sqrt(self.k2), self.low, self.high, np.ones_like(self.k2))
        self.data = _unit(_without(self.log_power, self.basis))
        self._cos2, self._sin2 = np.cos(2 * self.theta), np.sin(2 * self.theta)
        self.set_envelope(envelope)

    def set_envelope(self, envelope: float) -> None:
        self.decay = np.exp(-0.5 * envelope * self.k2)

    def model(self, point: Sequence[float] | Array) -> Array:
        """-cos(2 chi), decaying; `point` is the mean defocus and (U - V) / 2 times cos and sin of twice the angle.

        In these coordinates a stigmatic micrograph (U = V) is an ordinary point; in (U, V, angle) its angle is not.
        """
        focus = point[0] + point[1] * self._cos2 + point[2] * self._sin2
        return np.asarray(-np.cos(2 * self.optics.phase(self.k2, focus)) * self.decay)

    def score(self, point: Sequence[float] | Array) -> float:
        """Correlation (-1 to 1) of the rings of `point` with the spectrum, both without their smooth parts."""
        model = self.model(point)
        # |m|^2 - |Q'm|^2 is the squared length of what remains: the remainder itself is never needed.
        inside = self.basis.T @ model
        length2 = float(model @ model - inside @ inside)
        return float(self.data @ model) / math.sqrt(length2) if length2 > 0 else 0.0

    def above_background(self, fit: CtfFit) -> tuple[Array, float]:
        """Log power above the background at each pixel, and the strength of CTF^2 in it (before its decay)."""
        half, twice = fit.astigmatism / 2, 2 * math.radians(fit.angle)
        rings = 0.5 * (self.model((fit.defocus, half * math.cos(twice), half * math.sin(twice))) + self.decay)
        rest = _without(rings, self.basis)
        amplitude = max(float(rest @ self.log_power) / float(rest @ rest), 1e-6)
        background = self.basis @ (self.basis.T @ (self.log_power - amplitude * rings))
        return self.log_power - background, amplitude


def _search_mean_defocus(rings: _Rings, defocus_range: tuple[float, float]) -> tuple[float, list[float]]:
    """The decay of the rings, and the best mean defoci (A), from the rotational average."""
    low, high = defocus_range
    if not 0 < low < high:
        raise ValueError(f"a defocus range from {low:g} to {high:g} A is empty: give 0 < minimum < maximum")
    k, profile, weight = _rotational_average(np.sqrt(rings.k2), rings.log_power, rings.bin_width)
    basis = _smooth_basis(k, rings.low, rings.high, weight)
    data = _unit(_without(profile * weight, basis))
    # The step turns the outermost ring by a tenth of its period.
    step = 0.1 / (rings.optics.wavelength * rings.high**2)
    defoci = np.append(np.arange(low, high, step), high)
    cosines = -np.cos(2 * rings.optics.phase(k[None, :] ** 2, defoci[:, None]))
    best = (-2.0, 0.0, defoci)
    for envelope in ENVELOPES:
        models = cosines * (np.exp(-0.5 * envelope * k**2) * weight)[None, :]
        rest = models - (models @ basis) @ basis.T
        scores = rest @ data / np.maximum(np.linalg.norm(rest, axis=1), 1e-12)
        if scores.max() > best[0]:
            best = float(scores.max()), envelope, scores
    scores = best[2]
    padded = np.concatenate([[-2.0], scores, [-2.0]])
    peaks = np.flatnonzero((scores >= padded[:-2]) & (scores >= padded[2:]))
    ranked = sorted(peaks, key=lambda i: -scores[i])[:CANDIDATES]
    return best[1], [float(defoci[i]) for i in ranked]


def _refine(rings: _Rings, mean: float) -> tuple[float, Array]:
    """The best score and point (see `_Rings.model`) near a mean defocus: coarse astigmatism grid, then simplex."""
    points = [(mean, 0.0, 0.0)]
    for astigmatism in ASTIGMATISMS:
        if astigmatism < mean:
            for angle in ANGLES:
                twice = 2 * math.radians(angle)
                points.append((mean, astigmatism / 2 * math.cos(twice), astigmatism / 2 * math.sin(twice)))
    start = max(points, key=rings.score)
    simplex = [start] + [tuple(x + (150.0 if i == j else 0.0) for j, x in enumerate(start)) for i in range(3)]
    found = optimize.minimize(
        lambda point: -rings.score(point),
        start,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 1.0, "fatol": 1e-6, "maxfev": 400},
    )
    return -float(found.fun), np.asarray(found.x, dtype=np.float64)


def _profile(rings: _Rings, fit: CtfFit) -> RingProfile:
    above, _ = rings.above_background(fit)
    # A pixel where the defocus is larger than the mean sees its ring at a smaller k; this undoes it (Rohou 2015).
    twist = np.cos(2 * (rings.theta - math.radians(fit.angle)))
    stretched = np.sqrt(rings.k2 * (1 + 0.5 * fit.astigmatism / fit.defocus * twist))
    k, measured, _ = _rotational_average(stretched, above, rings.bin_width)
    ctf2 = np.sin(rings.optics.phase(k**2, fit.defocus)) ** 2
    model = np.empty_like(k)
    for i, near in enumerate(_neighbourhoods(k, rings.optics, fit.defocus, 2.5)):
        rest = ctf2[near] - ctf2[near].mean()
        strength = max(float(rest @ measured[near]) / max(float(rest @ rest), 1e-12), 0.0)
        model[i] = measured[near].mean() + strength * (ctf2[i] - ctf2[near].mean())
    return RingProfile(k, measured, model, ctf2)


def _resolution(profile: RingProfile, optics: Optics, defocus: float) -> float:
    """Resolution (A) where the correlation over one and a half rings first drops below 0.5; inf: no ring fits."""
    last = math.inf
    for centre, near in zip(profile.k, _neighbourhoods(profile.k, optics, defocus, 1.5)):
        # Below the first zero it is the particles' shape that is seen, and no ring.
        if optics.phase(centre**2, defocus) > math.pi:
            if np.corrcoef(profile.measured[near], profile.ctf2[near])[0, 1] < 0.5:
                break
            last = 1 / float(centre)
    return last


def _neighbourhoods(k: Array, optics: Optics, defocus: float, rings: float) -> list[slice]:
    """For each k the indices of its surroundings, so many rings wide (at least seven values)."""
    ring = 1 / (2 * k * optics.wavelength * defocus)
    reach = np.maximum(3, np.rint(0.5 * rings * ring / (k[1] - k[0]))).astype(int)
    return [slice(max(0, i - int(r)), i + int(r) + 1) for i, r in enumerate(reach)]


def _rotational_average(k: Array, values: Array, bin_width: float) -> tuple[Array, Array, Array]:
    """Bin centres (1/A), means and square roots of the pixel counts; bins without pixels are left out."""
    index = np.floor(k / bin_width).astype(np.int64)
    counts = np.bincount(index)
    used = np.flatnonzero(counts)
    means = np.bincount(index, values)[used] / counts[used]
    return np.asarray((used + 0.5) * bin_width), means, np.sqrt(counts[used].astype(np.float64))


def _smooth_basis(k: Array, low: float, high: float, weight: Array) -> Array:
    """Orthonormal columns that span the weighted polynomials in k of degree < SMOOTH_TERMS."""
    columns = np.polynomial.chebyshev.chebvander(2 * (k - low) / (high - low) - 1, SMOOTH_TERMS - 1)
    basis, _ = np.linalg.qr(columns * weight[:, None])
    return np.asarray(basis)


def _without(values: Array, basis: Array) -> Array:
    return np.asarray(values - basis @ (basis.T @ values))


def _unit(values: Array) -> Array:
    return np.asarray(values / (np.linalg.norm(values) or 1.0))


def _whole_plane(half: Array) -> Array:
    """The (n, n) plane of a real image's spectrum, zero frequency in the middle, from its `rfft2` half."""
    tile = half.shape[0]
    plane = np.empty((tile, tile))
    plane[:, : half.shape[1]] = half
    rest = tile - half.shape[1]
    mirrored = np.roll(half[::-1, 1 : rest + 1][:, ::-1], 1, axis=0)
    plane[:, half.shape[1] :] = mirrored
    return np.asarray(fft.fftshift(plane))
