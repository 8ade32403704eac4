"""Scattering amplitudes of ellipsoids, convex polyhedra and sampled densities."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spidask.simulation.particle import Ellipsoid, Particle, Polyhedron

Floats = NDArray[np.float64]


def amplitude(particle: Particle, q: Floats) -> NDArray[np.complex128]:
    """Scattering amplitude of a particle, F(q) = integral of rho(r) exp(-i q.r).

    Parameters
    ----------
    particle : Particle
        Bodies around the particle's own origin; where bodies overlap, densities add.
    q : numpy.ndarray
        Momentum transfer, shape (n, 3) with components x, y, z, float64, 1/nm.

    Returns
    -------
    numpy.ndarray
        Shape (n,), complex128, electrons.

    Notes
    -----
    First Born approximation. Polyhedra: the divergence theorem turns the volume into
    triangles, and a triangle's integral is a second divided difference of exp at the
    phases of its corners (Hermite-Genocchi), regular for every q but 0. Ellipsoids of
    revolution: Guinier 1939. Volumes: FFT of the density map, interpolated.
    """
    out = np.zeros(len(q), np.complex128)
    for body in particle.bodies:
        if isinstance(body, Polyhedron):
            _add_polyhedron(q, body.vertices, body.faces, body.edges, body.sides, body.density, out)
        elif isinstance(body, Ellipsoid):
            _add_ellipsoid(
                q, body.centre, body.axis, body.equatorial, body.polar, body.density, out
            )
        else:
            turned = q @ body.rotation
            centre = body.rotation.T @ body.centre
            _add_volume(turned, body.transform, body.step, body.spread, body.kernel, centre, out)
    return out


@njit(inline="always")
def cos_sin(t):  # type: ignore[no-untyped-def]
    """cos and sin of t turns, without branches, so that loops over it vectorize."""
    # Taylor series at a quarter of the angle (|z| <= pi / 4, error 2e-14), doubled twice.
    z = (t - np.floor(t + 0.5)) * (np.pi / 2)
    w = z * z
    s = z * (1 - w / 6 * (1 - w / 20 * (1 - w / 42 * (1 - w / 72 * (1 - w / 110 * (1 - w / 156))))))
    c = 1 - w / 2 * (
        1 - w / 12 * (1 - w / 30 * (1 - w / 56 * (1 - w / 90 * (1 - w / 132 * (1 - w / 182)))))
    )
    s, c = 2 * s * c, 1 - 2 * s * s
    return 1 - 2 * s * s, 2 * s * c


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_ellipsoid(q, centre, axis, equatorial, polar, density, out):  # type: ignore[no-untyped-def]
    electrons = density * 4 / 3 * np.pi * equatorial**2 * polar
    form, cos, sin = np.empty(len(q)), np.empty(len(q)), np.empty(len(q))
    for i in range(len(q)):
        qx, qy, qz = q[i, 0], q[i, 1], q[i, 2]
        along = qx * axis[0] + qy * axis[1] + qz * axis[2]
        across = qx * qx + qy * qy + qz * qz - along * along
        x2 = (equatorial * equatorial) * across + (polar * polar) * along * along
        near = x2 < 1e-3
        x = np.sqrt(1.0 if near else x2)
        c, s = cos_sin(x / (2 * np.pi))
        form[i] = 1 - x2 / 10 * (1 - x2 / 28) if near else 3 * (s - x * c) / (x * x * x)
        phase = qx * centre[0] + qy * centre[1] + qz * centre[2]
        cos[i], sin[i] = cos_sin(phase / (2 * np.pi))
    for i in range(len(q)):
        out[i] += electrons * form[i] * complex(cos[i], -sin[i])


@njit(cache=True, nogil=True, fastmath={"contract", "arcp", "nsz"}, error_model="numpy")
def _add_polyhedron(q, vertices, faces, edges, sides, density, out):  # type: ignore[no-untyped-def]
    n_block = 64
    a = np.empty((len(vertices), n_block))
    c = np.empty((len(vertices), n_block))
    s = np.empty((len(vertices), n_block))
    dc = np.empty((len(edges), n_block))
    ds = np.empty((len(edges), n_block))
    real = np.empty(n_block)
    imag = np.empty(n_block)
    block = np.zeros((3, n_block))
    one, two, three = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    normals = np.cross(two - one, three - one)
    parts = np.sum(one * normals, axis=1) / 6
    volume = np.sum(parts)
    moment = (one + two + three).T @ parts / 4
    for start in range(0, len(q), n_block):
        n = min(n_block, len(q) - start)
        for i in range(n):
            for d in range(3):
                block[d, i] = q[start + i, d]
        _corners(block, vertices, a, c, s)
        _edges(edges, a, c, s, dc, ds)
        _faces(block, normals, faces, sides, a, c, s, dc, ds, real, imag)
        for i in range(n):
            q2 = block[0, i] ** 2 + block[1, i] ** 2 + block[2, i] ** 2
            if q2 * volume ** (2 / 3) < 1e-8:
                slope = 0.0
                for d in range(3):
                    slope += block[d, i] * moment[d]
                out[start + i] += density * complex(volume, -slope)
            else:
                # F = -i / q^2 times the sum over faces of (q . N) f[a, b, c]
                out[start + i] += density * complex(imag[i], -real[i]) / q2


@njit(cache=True, nogil=True, fastmath={"contract", "arcp", "nsz"}, error_model="numpy")
def _corners(block, vertices, a, c, s):  # type: ignore[no-untyped-def]
    for v in range(len(vertices)):
        vx, vy, vz = vertices[v]
        for i in range(block.shape[1]):
            phase = block[0, i] * vx + block[1, i] * vy + block[2, i] * vz
            a[v, i] = phase
            c[v, i], s[v, i] = cos_sin(phase / (2 * np.pi))


@njit(cache=True, nogil=True, fastmath={"contract", "arcp", "nsz"}, error_model="numpy")
def _edges(edges, a, c, s, dc, ds):  # type: ignore[no-untyped-def]
    # First divided difference of exp(-i t) at the phases of both ends.
    for e in range(len(edges)):
        j, k = edges[e]
        for i in range(a.shape[1]):
            apart = a[j, i] - a[k, i]
            near = abs(apart) < 1e-4
            inverse = 1 / (1.0 if near else apart)
            half = 0.5 + apart * apart / 24
            dc[e, i] = -half * (s[j, i] + s[k, i]) if near else (c[j, i] - c[k, i]) * inverse
            ds[e, i] = -half * (c[j, i] + c[k, i]) if near else (s[k, i] - s[j, i]) * inverse


@njit(cache=True, nogil=True, fastmath={"contract", "arcp", "nsz"}, error_model="numpy")
def _faces(block, normals, faces, sides, a, c, s, dc, ds, real, imag):  # type: ignore[no-untyped-def]
    real[:] = 0
    imag[:] = 0
    for f in range(len(faces)):
        j, k, m = faces[f]
        jk, km, mj = sides[f]
        nx, ny, nz = normals[f]
        for i in range(block.shape[1]):
            # Second divided difference, over the two phases that are furthest apart.
            d_jk, d_km, d_mj = a[j, i] - a[k, i], a[k, i] - a[m, i], a[m, i] - a[j, i]
            take_jk = abs(d_jk) >= abs(d_km) and abs(d_jk) >= abs(d_mj)
            take_km = not take_jk and abs(d_km) >= abs(d_mj)
            apart = d_jk if take_jk else (d_km if take_km else d_mj)
            c_jk, c_km, c_mj = dc[jk, i], dc[km, i], dc[mj, i]
            s_jk, s_km, s_mj = ds[jk, i], ds[km, i], ds[mj, i]
            rise_c = c_mj - c_km if take_jk else (c_jk - c_mj if take_km else c_km - c_jk)
            rise_s = s_mj - s_km if take_jk else (s_jk - s_mj if take_km else s_km - s_jk)
            near = abs(apart) < 1e-3
            inverse = 1 / (1.0 if near else apart)
            # All three close: the mean of f'' / 2 over the corners, to second order.
            half = (1 + (d_jk * d_jk + d_km * d_km + d_mj * d_mj) / 24) / 6
            mean_c = -(c[j, i] + c[k, i] + c[m, i]) * half
            mean_s = (s[j, i] + s[k, i] + s[m, i]) * half
            weight = block[0, i] * nx + block[1, i] * ny + block[2, i] * nz
            real[i] += weight * (mean_c if near else rise_c * inverse)
            imag[i] += weight * (mean_s if near else rise_s * inverse)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_volume(q, transform, step, spread, kernel, centre, out):  # type: ignore[no-untyped-def]
    n = len(transform)
    per_tap = 1024
    taps = 2 * (len(kernel) - 2) // per_tap
    weights, places = np.empty((3, taps)), np.empty((3, taps), np.int64)
    for i in range(len(q)):
        inside = True
        for d in range(3):
            at = q[i, d] / step
            inside = inside and abs(at) < n / 2
            first = int(np.floor(at)) - taps // 2 + 1
            for t in range(taps):
                distance = abs(at - (first + t)) * per_tap
                low = int(distance)
                share = distance - low
                weights[d, t] = kernel[low] * (1 - share) + kernel[low + 1] * share
                places[d, t] = (first + t) % n
        if not inside:  # beyond what the sampling of the density can tell
            continue
        value = 0j
        for a in range(taps):
            for b in range(taps):
                line = 0j
                for c in range(taps):
                    line += weights[2, c] * transform[places[0, a], places[1, b], places[2, c]]
                value += weights[0, a] * weights[1, b] * line
        for d in range(3):
            value /= np.sinc(q[i, d] * spread / (2 * np.pi)) ** 3
        phase = q[i, 0] * centre[0] + q[i, 1] * centre[1] + q[i, 2] * centre[2]
        cos, sin = cos_sin(phase / (2 * np.pi))
        out[i] += value * complex(cos, -sin)
