import numpy as np

from spidask.frames.fitting import ELECTRONS_PER_NM3, fit_amplitudes, forward_length
from spidask.frames.sizing import sphere_amplitude

Q = (np.arange(200) + 0.5) * 4e6
DIAMETERS = np.geomspace(40, 100, 400)
AMPLITUDES = np.abs(sphere_amplitude(Q, DIAMETERS[:, None]))


def test_profiles_of_spheres_give_their_diameters_and_fluences():
    truth, fluence, brightest = np.array([50.0, 68.0, 90.0]), np.array([1e9, 3e9, 2e8]), 1e-6
    exposures = np.tile(np.linspace(30, 300, len(Q)), (3, 1))
    # Photons straight ahead of a solid sphere: fluence (r_e density volume)^2 solid angle.
    length = 2.8179403e-6 * ELECTRONS_PER_NM3 * np.pi / 6 * truth**3
    ahead = (fluence * 1e-6 * length**2 * brightest)[:, None]
    photons = ahead * sphere_amplitude(Q, truth[:, None]) ** 2 * exposures
    diameter, quality, found = fit_amplitudes(photons, exposures, AMPLITUDES, DIAMETERS, brightest)
    np.testing.assert_allclose(diameter, truth, rtol=1e-3)
    np.testing.assert_allclose(found, fluence, rtol=0.02)
    assert (quality > 0.999).all()
    assert diameter.dtype == quality.dtype == found.dtype == np.float32


def test_the_scattering_length_goes_with_the_volume():
    np.testing.assert_allclose(forward_length(np.array([30.0, 60.0])) / 137.042, [1 / 8, 1], 1e-4)
