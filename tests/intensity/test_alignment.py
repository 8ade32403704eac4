import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from spidask.errors import DataError
from spidask.intensity import correlate_shells, find_rotation, mean_over_shells, measure_symmetry
from spidask.intensity.sampling import flatten
from tests.intensity.conftest import SHELLS, SIZE, grid, noise

RADII = np.linalg.norm(grid(), axis=-1)


def with_noise(intensity, share, seed):
    """The intensity over its envelope with noise, and the signal's share of each shell's variance.

    `share` is the noise's in a shell of voxels; on a sphere the signal varies less.
    """
    values = flatten(intensity).values
    shell = np.rint(RADII).astype(int)
    count = np.bincount(shell.ravel())
    mean = np.bincount(shell.ravel(), values.ravel()) / count
    spread = np.sqrt(np.bincount(shell.ravel(), ((values - mean[shell]) ** 2).ravel()) / count)
    added = np.sqrt(share / (1 - share)) * spread[shell] * noise(seed)
    variances = []
    for radius in range(SHELLS[0], SHELLS[1] + 1):
        directions = np.random.default_rng(radius).normal(size=(4000, 3))
        at = radius * (directions / np.linalg.norm(directions, axis=1)[:, None]).T + SIZE // 2
        variances.append([map_coordinates(one, at).var() for one in (values, added)])
    signal, disturbance = np.transpose(variances)
    return values + added, signal / (signal + disturbance)


def angle_deg(one, other):
    return np.rad2deg(Rotation.from_matrix(one.T @ other).magnitude())


def test_a_known_rotation_comes_back(lopsided):
    turned, upright, rotation = lopsided
    found = find_rotation(turned, upright, SHELLS)
    assert angle_deg(found.rotation, rotation) < 0.3
    assert found.score > 0.995
    assert not found.inverted
    correlation = correlate_shells(turned, upright, SHELLS, found)
    assert np.nanmin(correlation[SHELLS[0] : SHELLS[1] + 1]) > 0.98


def test_a_known_rotation_comes_back_out_of_noise(lopsided):
    turned, upright, rotation = lopsided
    noisy, signal = with_noise(turned, 0.6, 1)
    found = find_rotation(noisy, upright, SHELLS)
    assert angle_deg(found.rotation, rotation) < 2
    # One of the two is without noise: the correlation is the root of the signal's share.
    assert found.score == pytest.approx(np.sqrt(signal).mean(), abs=0.05)
    assert found.score < 0.75


def test_two_noisy_halves_correlate_by_the_signal_s_share(lopsided):
    turned, upright, rotation = lopsided
    one, signal = with_noise(turned, 0.4, 1)
    other, signal_too = with_noise(upright, 0.4, 2)
    found = find_rotation(one, other, SHELLS)
    assert angle_deg(found.rotation, rotation) < 2
    assert found.score == pytest.approx(np.sqrt(signal * signal_too).mean(), abs=0.05)


def test_the_other_hand_is_found_where_it_is_asked_for(lopsided):
    turned, upright, rotation = lopsided
    odd = grid()[..., 0] > 0  # no Friedel symmetry any more
    reference = upright * np.where(odd, 1.0, 0.3)
    moved = turned * np.where((grid() @ rotation)[..., 0] > 0, 1.0, 0.3)
    mirrored = moved[::-1, ::-1, ::-1]
    found = find_rotation(mirrored, reference, SHELLS, both_hands=True)
    assert found.inverted
    assert angle_deg(found.rotation, rotation) < 1
    assert find_rotation(mirrored, reference, SHELLS).score < found.score - 0.2


def test_noise_has_no_rotation(lopsided):
    assert find_rotation(noise(3), lopsided[1], SHELLS).score < 0.25


def test_an_icosahedron_is_one_in_any_orientation(icosahedral):
    for intensity in icosahedral[:2]:
        correlation, _ = measure_symmetry(intensity, SHELLS)
        assert mean_over_shells(correlation, SHELLS) > 0.99
        assert np.isnan(correlation[: SHELLS[0]]).all()
        assert len(correlation) == SIZE // 2 + 1


def test_its_axes_are_those_of_the_group(icosahedral):
    turned, _, rotation = icosahedral
    _, found = measure_symmetry(turned, SHELLS)
    group = Rotation.create_group("I").as_matrix()
    # The corners lie on the group's axes, up to a rotation of the group or the mirror in x = y.
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])
    near = min(angle_deg(rotation @ one @ g, found) for g in group for one in (np.eye(3), swap))
    assert near < 0.5


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_noise_lowers_it_by_its_share(icosahedral, share):
    noisy, signal = with_noise(icosahedral[0], share, 4)
    correlation, _ = measure_symmetry(noisy, SHELLS)
    assert mean_over_shells(correlation, SHELLS) == pytest.approx(signal.mean(), abs=0.04)
    np.testing.assert_allclose(correlation[SHELLS[0] : SHELLS[1] + 1], signal, atol=0.2)


def test_what_is_no_icosahedron_scores_nothing(lopsided):
    correlation, _ = measure_symmetry(noise(6), SHELLS)
    assert abs(mean_over_shells(correlation, SHELLS)) < 0.06
    correlation, _ = measure_symmetry(lopsided[0], SHELLS)
    assert mean_over_shells(correlation, SHELLS) < 0.3


def test_a_brute_force_over_the_59_rotations_agrees(icosahedral):
    noisy, _ = with_noise(icosahedral[0], 0.3, 7)
    correlation, found = measure_symmetry(noisy, SHELLS)
    flat, radius = flatten(noisy), 12
    directions = np.random.default_rng(0).normal(size=(4000, 3))
    places = radius * directions / np.linalg.norm(directions, axis=1)[:, None]
    here = flat.at(places)[0]
    brute = [
        np.corrcoef(here, flat.at(places @ (found @ g @ found.T).T)[0])[0, 1]
        for g in Rotation.create_group("I").as_matrix()
    ]
    assert sorted(brute)[-1] == pytest.approx(1)
    assert np.mean(sorted(brute)[:-1]) == pytest.approx(correlation[radius], abs=0.02)


def test_unsuitable_intensities_are_refused(lopsided):
    cube = lopsided[0]
    with pytest.raises(DataError, match=r"shells 5 to 21 .* radii from 1 to 20"):
        measure_symmetry(cube, (5, 21))
    with pytest.raises(DataError, match=r"one odd length"):
        measure_symmetry(cube[:40, :40, :40], SHELLS)
    with pytest.raises(DataError, match=r"cannot be aligned"):
        find_rotation(cube, cube[2:-2, 2:-2, 2:-2], SHELLS)
