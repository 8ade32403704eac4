"""Chunks of the HDF5 filter bitshuffle with LZ4, only the blocks that are asked for."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

SLACK = 8
"""Bytes behind the compressed ones that are read, not used: LZ4 is copied 8 bytes at a time."""

HEADER = 12
"""Bytes before the first block: of the chunk (8) and of a block (4), uncompressed, big-endian."""

MINIMAL_MATCH = 4
"""A match of LZ4 is at least so long, and its length counts from there."""


def unpack_rows(
    raw: NDArray[np.uint8],
    dtype: np.dtype[np.generic],
    n_elements: int,
    rows: NDArray[np.int64],
    width: int,
    columns: slice,
) -> NDArray[np.generic]:
    """Decompress some rows of a chunk.

    Parameters
    ----------
    raw : numpy.ndarray
        The chunk as it is in the file and `SLACK` bytes more, shape (byte,), uint8.
    dtype : numpy.dtype
        Of an element, in the file's byte order.
    n_elements : int
        Elements of the chunk.
    rows : numpy.ndarray
        Numbers of the rows, ascending, all leading axes of the chunk counted as one; int64.
    width : int
        Elements of a row.
    columns : slice
        Which of them to return; of step 1.

    Returns
    -------
    numpy.ndarray
        Shape (row, column), of `dtype`.

    Raises
    ------
    ValueError
        If the bytes are not what the filter writes; nothing beyond them is read.

    Notes
    -----
    Sources: Masui et al., Astronomy and Computing 12 (2015) 181, and the filter beside it, for
    the header, blocks of whole groups of 8 elements, and up to 7 elements at the end that are
    copied; LZ4 block format description 1.9.4.
    """
    out = np.empty((len(rows), columns.stop - columns.start), dtype)
    # Bytes stay as they are in the file, so all types of one size are alike.
    lines = out.view(f"<u{dtype.itemsize}")
    if not _unpack(raw, n_elements, rows, width, columns.start, lines):
        raise ValueError("the chunk is not what bitshuffle with LZ4 writes")
    return out


@numba.njit(nogil=True, cache=True)
def _unpack(raw, n_elements, rows, width, first, lines):  # type: ignore[no-untyped-def]
    end, itemsize = len(raw) - SLACK, lines.itemsize
    if end < HEADER or _big_endian(raw, 0, 8) != n_elements * itemsize:
        return False
    block = _big_endian(raw, 8, 4) // itemsize
    if block == 0 or block % 8:
        return False
    whole = n_elements - n_elements % 8
    n_blocks = (whole + block - 1) // block
    planes = np.empty(min(block, whole) * itemsize + SLACK, np.uint8)
    turned = np.empty((itemsize, lines.shape[1] // 8 + 2), np.uint64)
    number, at, size, n_inside = -1, HEADER, 0, 0
    for line in range(len(rows)):
        done = rows[line] * width + first
        start, stop = done, done + lines.shape[1]
        while done < stop:
            wanted = n_blocks if done >= whole else done // block
            if wanted > number:
                while wanted > number:
                    number += 1
                    at += size
                    size = (n_elements - whole) * itemsize
                    if number < n_blocks:
                        size = _big_endian(raw, at, 4)
                        at += 4
                    if size > end - at:
                        return False
                n_inside = min(block, whole - number * block)
                if number < n_blocks and not _decode(
                    raw, at, at + size, planes, n_inside * itemsize
                ):
                    return False
            if number == n_blocks:
                _copy(raw[at + (done - whole) * itemsize :], lines[line, done - start :])
                break
            inside = done - number * block
            n = min(stop - done, n_inside - inside)
            _turn(planes, n_inside // 8, inside // 8, (inside + n + 7) // 8, turned)
            _join(turned, inside % 8, lines[line, done - start : done - start + n])
            done += n
    return True


@numba.njit(nogil=True, cache=True)
def _big_endian(raw, at, n_bytes):  # type: ignore[no-untyped-def]
    value = np.int64(0)
    for i in range(n_bytes):
        value = value << 8 | np.int64(raw[at + i])
    return value


@numba.njit(nogil=True, cache=True)
def _turn(planes, n_groups, first, last, turned):  # type: ignore[no-untyped-def]
    # Plane i holds bit i of all elements, 8 of them in a byte. Of 8 planes and 8 elements, 8 x 8
    # bits, the transpose is a byte of each element. Slices, for LLVM to make vectors of it.
    n = last - first
    for byte in range(len(turned)):
        at = 8 * byte * n_groups + first
        p0, at = planes[at : at + n], at + n_groups
        p1, at = planes[at : at + n], at + n_groups
        p2, at = planes[at : at + n], at + n_groups
        p3, at = planes[at : at + n], at + n_groups
        p4, at = planes[at : at + n], at + n_groups
        p5, at = planes[at : at + n], at + n_groups
        p6, at = planes[at : at + n], at + n_groups
        p7 = planes[at : at + n]
        out = turned[byte]
        for i in range(n):
            low = _word(p0[i], p1[i], p2[i], p3[i])
            out[i] = _transpose(low | _word(p4[i], p5[i], p6[i], p7[i]) << np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _word(b0, b1, b2, b3):  # type: ignore[no-untyped-def]
    low = np.uint64(b0) | np.uint64(b1) << np.uint64(8)
    return low | np.uint64(b2) << np.uint64(16) | np.uint64(b3) << np.uint64(24)


@numba.njit(nogil=True, cache=True)
def _join(turned, skip, out):  # type: ignore[no-untyped-def]
    for byte in range(len(turned)):
        values = turned[byte].view(np.uint8)[skip : skip + len(out)]
        for i in range(len(out)):
            part = out.dtype.type(values[i]) << out.dtype.type(8 * byte)
            out[i] = part if byte == 0 else out[i] | part


@numba.njit(nogil=True, cache=True)
def _copy(raw, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = 0
        for byte in range(out.itemsize):
            part = out.dtype.type(raw[i * out.itemsize + byte])
            out[i] |= part << out.dtype.type(8 * byte)


@numba.njit(nogil=True, cache=True)
def _transpose(bits):  # type: ignore[no-untyped-def]
    # Hacker's Delight, section 7-3: swap blocks of 1, 2 and 4 bits across the diagonal.
    swap = (bits ^ bits >> np.uint64(7)) & np.uint64(0x00AA00AA00AA00AA)
    bits ^= swap ^ swap << np.uint64(7)
    swap = (bits ^ bits >> np.uint64(14)) & np.uint64(0x0000CCCC0000CCCC)
    bits ^= swap ^ swap << np.uint64(14)
    swap = (bits ^ bits >> np.uint64(28)) & np.uint64(0x00000000F0F0F0F0)
    return bits ^ swap ^ swap << np.uint64(28)


@numba.njit(nogil=True, cache=True)
def _decode(raw, at, end, out, n_bytes):  # type: ignore[no-untyped-def]
    # One block of LZ4: literals and matches in turn, and literals at the end. Copies go 8 bytes
    # at a time, up to 7 too far, which `SLACK` leaves room for; lengths are checked before.
    # A block that ends within a match is left at the loop's end.
    done = 0
    while at < end:
        token = np.int64(raw[at])
        at, length = _length(raw, at + 1, end, token >> 4)
        if length > end - at or length > n_bytes - done:
            return False
        for i in range(0, length, 8):
            _copy_8(out, done + i, raw, at + i)
        at += length
        done += length
        if at == end:
            return done == n_bytes
        back = np.int64(raw[at]) | np.int64(raw[at + 1]) << 8
        at, length = _length(raw, at + 2, end, token & 15)
        length += MINIMAL_MATCH
        if not 0 < back <= done or length > n_bytes - done:
            return False
        _repeat(out, done, back, length)
        done += length
    return False


@numba.njit(nogil=True, cache=True)
def _length(raw, at, end, length):  # type: ignore[no-untyped-def]
    more = np.int64(255) if length == 15 else np.int64(0)
    while more == 255 and at < end:
        more = np.int64(raw[at])
        length += more
        at += 1
    return at, length


@numba.njit(nogil=True, cache=True)
def _repeat(out, done, back, length):  # type: ignore[no-untyped-def]
    stop = done + length
    if back < 8:
        # What repeats after few bytes repeats after a multiple of them: 8 bytes fit in between.
        for _ in range(min(length, 8)):
            out[done] = out[done - back]
            done += 1
        back *= (7 + back) // back
    for to in range(done, stop, 8):
        _copy_8(out, to, out, to - back)


@numba.njit(nogil=True, cache=True, inline="always")
def _copy_8(out, to, raw, at):  # type: ignore[no-untyped-def]
    # Unsigned positions, for LLVM to make one load and one store of it.
    o, r = np.uint64(to), np.uint64(at)
    b0, b1, b2, b3 = raw[r], raw[r + _1], raw[r + _2], raw[r + _3]
    b4, b5, b6, b7 = raw[r + _4], raw[r + _5], raw[r + _6], raw[r + _7]
    out[o], out[o + _1], out[o + _2], out[o + _3] = b0, b1, b2, b3
    out[o + _4], out[o + _5], out[o + _6], out[o + _7] = b4, b5, b6, b7


_1, _2, _3, _4, _5, _6, _7 = (np.uint64(i) for i in range(1, 8))
