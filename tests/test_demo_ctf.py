"""mpsteps.demo.ctf: spectra, the model of the rings, and the fit."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("numpy")
pytest.importorskip("scipy")
pytest.importorskip("mrcfile")
pytest.importorskip("matplotlib")

import numpy as np

from mpsteps.demo import bundled_micrograph, ctf
from mpsteps.demo.micrograph import read_info, read_window, tile_starts

OPTICS = ctf.Optics(300.0, 2.7, 0.07)
TILE = 320


def synthetic(u, v, angle, pixel_size=1.9, size=800, strength=0.8, optics=OPTICS, gradient=0.0, seed=1):
    """A micrograph of noise whose power is a falling background times 1 + strength * CTF^2."""
    random = np.random.default_rng(seed)
    ky, kx = np.fft.fftfreq(size, pixel_size)[:, None], np.fft.rfftfreq(size, pixel_size)[None, :]
    k2 = kx**2 + ky**2
    rings = ctf.ctf_squared(k2, np.arctan2(ky, kx + 0 * ky), optics, u, v, angle)
    power = (1 + strength * np.exp(-50 * k2) * rings) * (0.3 + 3 * np.exp(-100 * k2))
    noise = np.fft.rfft2(random.normal(size=(size, size)))
    image = np.fft.irfft2(noise * np.sqrt(power), s=(size, size))
    slope = np.linspace(-gradient, gradient, size)
    return (image + slope[None, :] + slope[:, None]).astype(np.float32)


def spectrum_of(image, tile=TILE):
    rows, columns = (tile_starts(side, tile, tile // 2) for side in image.shape)
    return np.mean([ctf.band_spectrum(image[row : row + tile], columns, tile) for row in rows], axis=0)


def fit(image, pixel_size=1.9, optics=OPTICS, **kwargs):
    return ctf.fit_ctf(spectrum_of(image), pixel_size, optics, **kwargs)


@pytest.mark.parametrize("defocus", [5000, 9000, 14000, 22000, 34000])
def test_the_defocus_of_a_stigmatic_micrograph_is_found(defocus):
    """Within 1 %, whatever the defocus, and without inventing astigmatism."""
    result = fit(synthetic(defocus, defocus, 0))

    assert result.defocus == pytest.approx(defocus, rel=0.01)
    assert result.astigmatism < 100 + 0.01 * defocus


@pytest.mark.parametrize(("u", "v", "angle"), [(10400, 10000, 20), (16000, 15000, -50), (22000, 20000, 88)])
def test_astigmatism_and_its_direction_are_found(u, v, angle):
    """U and V within 1 %, U - V within 100 A, the angle within 5 degrees."""
    result = fit(synthetic(u, v, angle))

    assert result.defocus_u == pytest.approx(u, rel=0.01)
    assert result.defocus_v == pytest.approx(v, rel=0.01)
    assert result.astigmatism == pytest.approx(u - v, abs=100)
    assert abs((result.angle - angle + 90) % 180 - 90) < 5


def test_strong_astigmatism_that_blurs_the_rotational_average_is_found():
    """The one-dimensional search only starts the two-dimensional one."""
    result = fit(synthetic(16000, 13000, 35))

    assert (result.defocus_u, result.defocus_v) == pytest.approx((16000, 13000), rel=0.02)


def test_the_axis_of_the_angle_is_that_of_rows_and_columns():
    """Turning the image by a quarter turns the angle by 90 degrees; mirroring it changes the angle's sign."""
    image = synthetic(16000, 14500, 30)

    assert fit(np.rot90(image)).angle == pytest.approx(-60, abs=4)
    assert fit(image[::-1]).angle == pytest.approx(-30, abs=4)


def test_a_gradient_of_ice_thickness_does_not_disturb_the_fit():
    """A ramp twenty times as high as the noise leaves the result within 1 %."""
    assert fit(synthetic(12000, 12000, 0, gradient=20.0)).defocus == pytest.approx(12000, rel=0.01)


@pytest.mark.parametrize(
    ("pixel_size", "optics"),
    [(1.2, OPTICS), (3.5, OPTICS), (1.9, ctf.Optics(200.0, 2.7, 0.1)), (1.9, ctf.Optics(300.0, 0.01, 0.07))],
)
def test_other_pixel_sizes_and_microscopes_are_fitted(pixel_size, optics):
    """Coarse and fine pixels, 200 kV, and a Cs corrector: within 2 %."""
    image = synthetic(15000, 15000, 0, pixel_size=pixel_size, optics=optics)

    assert fit(image, pixel_size, optics).defocus == pytest.approx(15000, rel=0.02)


def test_rings_score_more_and_reach_further_than_noise():
    """The score and the resolution tell a micrograph with rings from one without."""
    rings, noise = fit(synthetic(12000, 12000, 0)), fit(synthetic(12000, 12000, 0, strength=0.0))

    assert rings.score > 3 * noise.score
    assert rings.resolution < 5 < noise.resolution


def test_the_defocus_stays_within_the_range():
    """A range that leaves out the true defocus gives a worse one inside the range."""
    image = synthetic(12000, 12000, 0)
    result = fit(image, defocus_range=(20000, 30000))

    assert 20000 <= result.defocus <= 30000
    assert result.score < 0.5 * fit(image).score


def test_a_fit_has_u_larger_than_v_and_plain_numbers():
    """The fields travel as plain floats and follow CTFFIND's conventions."""
    result = fit(synthetic(15000, 14000, -89))

    assert result.defocus_u >= result.defocus_v
    assert -90 <= result.angle < 90
    assert all(type(value) is float for value in vars(result).values())


def test_the_wavelength_is_that_of_the_textbooks():
    """0.0251 A at 200 kV and 0.0197 A at 300 kV."""
    assert ctf.Optics(200.0).wavelength == pytest.approx(0.02508, abs=2e-5)
    assert ctf.Optics(300.0).wavelength == pytest.approx(0.01969, abs=2e-5)


def test_the_phase_is_that_of_the_formula():
    """At k = 0 only the amplitude contrast remains; the first zero of CTF lies where chi = pi."""
    assert OPTICS.phase(np.array([0.0]), 10000.0)[0] == pytest.approx(math.asin(0.07))
    no_cs = ctf.Optics(300.0, 0.0, 0.0)
    first_zero = 1 / (no_cs.wavelength * 10000)

    assert ctf.ctf_squared(np.array([first_zero]), np.zeros(1), no_cs, 1e4, 1e4, 0)[0] == pytest.approx(0, abs=1e-12)


def test_the_power_of_white_noise_is_flat():
    """The mean over tiles has the variance of the pixels times the window's energy at each frequency."""
    noise = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    spectrum = ctf.band_spectrum(noise, tile_starts(4096, 64, 32), 64)
    energy = np.sum(np.hanning(65)[:-1] ** 2) ** 2

    assert spectrum.shape == (64, 33)
    assert spectrum[8:56, 3:].mean() == pytest.approx(energy, rel=0.05)


def test_flattened_pictures_show_the_same_rings():
    """Measured and model correlate, are symmetric about the middle, and are NaN outside the band."""
    spectrum = spectrum_of(synthetic(16000, 14000, 30))
    result = ctf.fit_ctf(spectrum, 1.9, OPTICS)
    measured, model, nyquist = ctf.flatten(spectrum, 1.9, OPTICS, result)
    both = np.isfinite(measured) & np.isfinite(model)

    assert measured.shape == model.shape == (TILE, TILE)
    assert nyquist == pytest.approx(0.5 / 1.9)
    assert np.isnan(model[TILE // 2, TILE // 2])
    assert np.corrcoef(measured[both], model[both])[0, 1] > 0.2
    np.testing.assert_allclose(model[1:, 1:], model[:0:-1, :0:-1], atol=1e-9)
    np.testing.assert_allclose(measured[1:, 1:], measured[:0:-1, :0:-1], atol=1e-9)


@pytest.mark.parametrize(
    ("spectrum", "pixel_size", "message"),
    [
        (np.zeros((128, 65)), 1.5, "constant"),
        (np.full((128, 65), np.nan), 1.5, "NaN"),
        (np.ones((128, 128)), 1.5, "square tiles"),
        (np.ones((128, 65)), 12.0, "resolve no rings"),
    ],
)
def test_a_spectrum_that_cannot_be_fitted_is_refused_by_name(spectrum, pixel_size, message):
    """One sentence that names the micrograph and says what is wrong."""
    with pytest.raises(ValueError, match=f"mic7.*{message}"):
        ctf.fit_ctf(spectrum, pixel_size, OPTICS, name="mic7")


def test_an_empty_defocus_range_is_refused():
    """Minimum above maximum."""
    with pytest.raises(ValueError, match="20000 to 10000"):
        fit(synthetic(12000, 12000, 0), defocus_range=(20000, 10000))


def test_the_bundled_micrograph_has_rings_near_its_nominal_defocus():
    """0.8 to 0.9 um were set on the microscope; what its rings say lies near, with little astigmatism."""
    path = bundled_micrograph()
    pixel_size = read_info(path).pixel_size
    result = ctf.fit_ctf(spectrum_of(read_window(path), 512), pixel_size, OPTICS)

    assert pixel_size == pytest.approx(2.1344, abs=1e-3)
    assert 10000 < result.defocus < 11000
    assert result.astigmatism < 500
    assert result.resolution < 6
