"""What can go wrong, as exceptions that carry their facts as attributes."""

from __future__ import annotations


class SpidaskError(Exception):
    """Base of every error that spidask raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong, the value found, what was expected, what to do next; one line.
    **facts : object
        The same facts as data; they become attributes of the exception.
    """

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(_make_printable(message))
        self.__dict__.update(facts)
        self._facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive pickling by default, and
        # an error on a worker has to reach the user with its facts.
        return _rebuild, (type(self), str(self), self._facts)


def _make_printable(message: str) -> str:
    """Escape what a damaged file may bring into a message; several lines stay."""
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
    return "".join(shown)


def _rebuild(kind: type[SpidaskError], message: str, facts: dict[str, object]) -> SpidaskError:
    return kind(message, **facts)


class ConfigError(SpidaskError):
    """A setting is unknown, of the wrong type, or contradicts another."""


MOST_LETTERS = 2000
"""Of a message about data; what is wrong stands at its beginning, what to do at its end."""


class DataError(SpidaskError):
    """A file or an array is not what it should be.

    Parameters
    ----------
    message : str
        As of `SpidaskError`; it becomes one line of at most `MOST_LETTERS`, whatever the data
        brought into it.
    **facts : object
        As of `SpidaskError`.
    """

    def __init__(self, message: str, **facts: object) -> None:
        line = _make_printable(message).replace("\n", "\\n")
        if len(line) > MOST_LETTERS:
            line = f"{line[: MOST_LETTERS - 500]} ... {line[-490:]}"
        super().__init__(line, **facts)


class StoreError(SpidaskError):
    """An output folder is stale, misaligned or incomplete."""


class TrainingError(SpidaskError):
    """Training cannot start or has diverged."""


class ClusterError(SpidaskError):
    """Workers or devices that were asked for are not there."""
