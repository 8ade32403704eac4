"""Kernels on one block of frames: NumPy and Numba only."""
