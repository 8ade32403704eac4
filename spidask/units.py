"""Numbers with their units, as text."""

from __future__ import annotations


def format_bytes(n: float) -> str:
    """Write a number of bytes with its unit.

    Parameters
    ----------
    n : float
        Bytes.

    Returns
    -------
    str
        Three digits and a decimal unit.

    Examples
    --------
    >>> format_bytes(12_582_912_000_000), format_bytes(950)
    ('12.6 TB', '950 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Write a time with its unit.

    Parameters
    ----------
    seconds : float
        Seconds.

    Returns
    -------
    str
        Two digits or more.

    Examples
    --------
    >>> format_seconds(9.4), format_seconds(5400), format_seconds(200_000)
    ('9.4 s', '90 min', '56 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
