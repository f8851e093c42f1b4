"""mpsteps.demo.picking: particles are found where they are, once, however the image is tiled."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy")
pytest.importorskip("scipy")
pytest.importorskip("mrcfile")
pytest.importorskip("matplotlib")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsteps.demo import bundled_micrograph, picking
from mpsteps.demo.micrograph import read_info, read_window
from mpsteps.demo.picking import Pick

PIXEL_SIZE, DIAMETER = 2.0, 120.0
SIDE = DIAMETER / PIXEL_SIZE  # pixels


def particles(centres, shape, noise=2.0, axes=(1.0, 1.0), seed=3):
    """Dark ellipses of depth 1 in noise; `axes` in diameters, each particle in its own direction."""
    random = np.random.default_rng(seed)
    image = random.normal(scale=noise, size=shape)
    for cx, cy in centres:
        angle = random.uniform(0, np.pi)
        near = slice(max(0, int(cy - SIDE)), int(cy + SIDE)), slice(max(0, int(cx - SIDE)), int(cx + SIDE))
        y, x = np.indices(image[near].shape)
        y, x = y + near[0].start - cy, x + near[1].start - cx
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        image[near][np.hypot(along / axes[0], across / axes[1]) < SIDE / 2] -= 1
    return image.astype(np.float32)


def scattered(count, shape, seed=5, distance=1.3):
    """Places at least `distance` diameters apart and one diameter from the border."""
    random = np.random.default_rng(seed)
    places = []
    while len(places) < count:
        place = random.uniform(SIDE, shape[1] - SIDE), random.uniform(SIDE, shape[0] - SIDE)
        if all(np.hypot(place[0] - x, place[1] - y) > distance * SIDE for x, y in places):
            places.append(place)
    return places


def pick(image, tile, threshold=0.25, pixel_size=PIXEL_SIZE, diameter=DIAMETER):
    """As the protocol does it: tile by tile, then merged."""
    found = []
    for top, left in picking.tile_corners(*image.shape, tile, pixel_size, diameter):
        window = picking.tile_window(top, left, *image.shape, tile, pixel_size, diameter)
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        found += picking.pick_tile(image[rows, columns], window, pixel_size, diameter, threshold)
    return picking.merge_picks(found, picking.MIN_DISTANCE * diameter / pixel_size), found


def matched(picks, places, within=0.2):
    """How many places have a pick within so many diameters, and how many picks have a place."""
    distances = np.array([[np.hypot(p.x - x, p.y - y) for x, y in places] for p in picks])
    return (distances.min(axis=0) < within * SIDE).sum(), (distances.min(axis=1) < within * SIDE).sum()


@pytest.mark.parametrize("axes", [(1.0, 1.0), (1.15, 0.65)], ids=["round", "elongated"])
def test_particles_in_noise_are_found_and_little_else(axes):
    """Twice as much noise as signal: recall and precision above 95 %, centres within a fifth of the diameter."""
    shape = (1100, 1300)
    places = scattered(60, shape)
    picks, _ = pick(particles(places, shape, axes=axes), tile=512)
    recalled, precise = matched(picks, places)

    assert recalled >= 0.95 * len(places)
    assert precise >= 0.95 * len(picks)


def test_centres_are_found_to_a_fraction_of_a_pixel_where_there_is_no_noise():
    """The centre of a disc, at any place on the averaged grid, in pixels of the micrograph."""
    places = [(200.0, 200.0), (401.0, 202.0), (203.0, 403.0), (404.5, 401.5)]
    picks, _ = pick(particles(places, (600, 600), noise=0.01), tile=4096, threshold=0.6)

    assert matched(picks, places, within=1.5 / SIDE) == (4, 4)


def test_a_particle_on_the_border_of_tiles_is_found_once():
    """Also on a corner where four tiles meet, and where noise gives it two maxima, one on either side."""
    places = [(510, 300), (300, 510), (510, 510), (700, 700)]
    for seed in range(10):
        image = particles(places, (1024, 1024), noise=3.0, seed=seed)
        picks, _ = pick(image, tile=510, threshold=0.3)
        near = [[np.hypot(p.x - x, p.y - y) < SIDE / 2 for p in picks] for x, y in places]

        assert np.sum(near, axis=1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("tile", [200, 333, 512, 777])
def test_the_tiling_does_not_change_the_picks(tile):
    """The same particles, centres and scores as from the whole image at once."""
    image = particles(scattered(40, (900, 1100)), (900, 1100))
    whole, _ = pick(image, tile=4096)
    tiled, _ = pick(image, tile=tile)

    assert len(whole) > 30
    np.testing.assert_allclose(np.array(tiled), np.array(whole), atol=0.02)


def test_bright_blobs_are_no_particles():
    """Protein is dark in a micrograph; the gaps between bright blobs may look like it, the blobs never."""
    places = scattered(20, (800, 800))
    image = -particles(places, (800, 800), noise=0.5)

    picks, _ = pick(image, tile=512)

    assert matched(picks, places, within=0.4) == (0, 0)


def test_noise_alone_gives_next_to_nothing():
    """The score is a correlation: it does not rise because nothing else is there."""
    noise = np.random.default_rng(11).normal(size=(1200, 1200)).astype(np.float32)

    assert len(pick(noise, tile=512, threshold=0.35)[0]) <= 2


def test_a_blank_or_tiny_image_gives_no_picks():
    """No division by a contrast of 0, and no place where a particle would fit."""
    assert pick(np.zeros((600, 600), np.float32), tile=512)[0] == []
    assert pick(np.ones((30, 600), np.float32), tile=512)[0] == []


def test_brightness_and_contrast_do_not_matter():
    """The same micrograph in other units gives the same picks."""
    image = particles(scattered(20, (800, 800)), (800, 800))
    expected, _ = pick(image, tile=512)
    actual, _ = pick(image * 37 + 1500, tile=512)

    np.testing.assert_allclose(np.array(actual), np.array(expected), atol=0.05)


@pytest.mark.parametrize("pixel_size", [0.7, 1.3, 4.0, 12.0])
def test_positions_are_in_pixels_of_the_micrograph_at_any_pixel_size(pixel_size):
    """Also where the particle has fewer pixels than the search would like, or many more."""
    side = DIAMETER / pixel_size
    size = int(6 * side)
    y, x = np.indices((size, size))
    noise = np.random.default_rng(2).normal(scale=0.3, size=(size, size))
    image = (noise - (np.hypot(x - 2.2 * side, y - 3.1 * side) < side / 2)).astype(np.float32)
    picks, _ = pick(image, 4096, threshold=0.4, pixel_size=pixel_size)

    assert len(picks) == 1
    assert np.hypot(picks[0].x - 2.2 * side, picks[0].y - 3.1 * side) < 0.1 * side


@pytest.mark.parametrize(("pixel_size", "diameter"), [(0.0, 100.0), (1.0, -5.0), (30.0, 100.0)])
def test_a_particle_that_cannot_be_seen_is_refused(pixel_size, diameter):
    """Smaller than four pixels, or no size at all."""
    with pytest.raises(ValueError, match="A"):
        picking.binning(pixel_size, diameter)


some_picks = st.lists(
    st.builds(Pick, st.integers(0, 60).map(float), st.integers(0, 60).map(float), st.sampled_from([0.2, 0.3, 0.4])),
    max_size=40,
)


@settings(deadline=None)
@given(some_picks, st.randoms(use_true_random=False))
def test_the_merge_does_not_depend_on_order_or_repetition(picks, random):
    """Steps finish in any order, and a tile's picks may come twice."""
    shuffled = picks + picks[:5]
    random.shuffle(shuffled)

    assert picking.merge_picks(shuffled, 10) == picking.merge_picks(picks, 10)


@settings(deadline=None)
@given(some_picks)
def test_the_merge_keeps_the_best_and_nothing_close(picks):
    """Each dropped pick has a kept one near that is at least as good; kept ones are apart."""
    kept = picking.merge_picks(picks, 10)

    assert set(kept) <= set(picks)
    for i, a in enumerate(kept):
        assert all(np.hypot(a.x - b.x, a.y - b.y) >= 10 for b in kept[:i])
    for dropped in set(picks) - set(kept):
        assert any(np.hypot(dropped.x - k.x, dropped.y - k.y) < 10 and k.score >= dropped.score for k in kept)


def test_the_merge_of_nothing_is_nothing():
    """A micrograph without particles."""
    assert picking.merge_picks([], 10) == []


def test_the_bundled_micrograph_has_about_a_hundred_particles():
    """Counted by eye: some 110 to 130, without those cut by the border."""
    path = bundled_micrograph()
    picks, _ = pick(read_window(path), 512, pixel_size=read_info(path).pixel_size, diameter=130.0)

    assert 90 <= len(picks) <= 140
