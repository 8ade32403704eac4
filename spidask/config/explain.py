"""Say in one line what is wrong with a setting."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Tell every problem that pydantic found, one line each.

    Parameters
    ----------
    error : pydantic.ValidationError
        What it raised.
    model : type
        The section that was validated, for the keys it knows.
    prefix : str
        Path of that section in the file.

    Returns
    -------
    str
        The key's path, what is wrong and what to do; alike ones joined.
    """
    told: dict[str, list[str]] = {}
    for one in error.errors():
        # pydantic adds the names of union branches to the path; only real keys mean something.
        location = [str(part) for part in one["loc"] if _is_key(part)]
        key, message = _explain_one(dict(one), model, location, prefix)
        told.setdefault(".".join(filter(None, [prefix, *location, key])), []).append(message)
    # Each branch of a union has its own message about the same value.
    lines = []
    for path, (first, *others) in told.items():
        text = " or ".join([first, *(other.partition(", expected ")[2] for other in others)])
        lines.append(f"{path}: {text}" if path else text)
    return "\n".join(lines)


def _explain_one(
    error: dict[str, Any], model: type[BaseModel], location: list[str], prefix: str
) -> tuple[str, str]:
    """Give what the message adds to the key's path, and the rest of the message."""
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
        return "", f"unknown key. {hint}"
    if error["type"] == "missing":
        path = ".".join(filter(None, [prefix, *location]))
        return "", f"missing. Give it in the YAML file or with --set {path}=..."
    value = json.dumps(error["input"], default=str)
    if error["type"] in ("model_type", "dict_type"):
        keys = ", ".join(_known_keys(model, location))
        return "", f"{value}, expected a section with any of the keys {keys}; or leave it out"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        # A validator of a section begins its message with the key.
        key, colon, rest = message.partition(": ")
        return (key, rest) if colon and " " not in key else ("", message)
    return "", f"{value}, expected {_say_expected(message)}"


def _say_expected(message: str) -> str:
    text = message.removeprefix("Input should be ").partition(", unable")[0]
    text = (
        text.partition(" after validation")[0]
        .replace("valid list", "list")
        .replace("valid tuple", "list")
    )
    text = re.sub("^(List|Tuple) should have", "a list of", text)
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def _is_key(part: object) -> bool:
    text = str(part)
    return isinstance(part, int) or not (
        text.startswith(("literal[", "list[", "constrained", "function-"))
        or text in ("float", "int", "str")
    )


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        # The next name is any run's name where a section stands for each run.
        field = model.model_fields.get(name)
        model = (_section_type(field.annotation) if field else None) or model
    return list(model.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in typing.get_args(annotation):
        found = _section_type(inner)
        if found is not None:
            return found
    return None
