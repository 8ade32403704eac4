"""What can happen to a file: cut off, bit rot, other dtypes and shapes, links in a circle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator
Mutation = Callable[[Path, Rng], str]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MARKS = re.compile(rb"\x89HDF|TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FRHP|FHDB|FSHD|BTHD|BTLF|FADB|EAHD")
"""What parts of an HDF5 file begin with."""
ABSURD = (0, 1, -1, 7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)
DTYPES = ("i1", "u1", ">i2", "u2", "i4", ">u4", "i8", "u8", "f2", "f4", ">f8", "c8", "?", "S3")
"""Numbers, complex ones, truths and text."""
ODD_JSON = (None, -1, 0, 1, 2**40, 1.5, 1e308, "", "text", [], [0], [-1, 2], {}, {"a": [1]}, True)
ODD_FIELDS = (
    "", " ", "-1", "1.5", "1e3", "nan", "٣", "\uff19", "99999999999999999999", "0x10", "single",
    '"', '""', "a,b", '"a,b"', "\x00", "\ufeff", "é", "x" * 5000, "single\r", "\t", "_1", "+1",
)  # fmt: skip


def mutate(subjects: Sequence[Path], rng: Rng) -> str:
    """Damage one of some files.

    Parameters
    ----------
    subjects : sequence of pathlib.Path
        Files, to be changed in place.
    rng : numpy.random.Generator
        Says how.

    Returns
    -------
    str
        What was done.
    """
    done = []
    for _ in range(1 if rng.random() < 0.7 else 2):
        path = _pick(sorted(path for path in subjects if path.is_file()) or [subjects[0]], rng)
        kinds = _kinds(path)
        try:
            done.append(f"{path.name}: {_pick(kinds, rng)(path, rng)}")
        except Exception as error:  # not every change is possible in every file
            done.append(f"{path.name}: {_bytes(path, rng)} (as {type(error).__name__})")
    return "; ".join(done)


def _pick(choices: Sequence[Any], rng: Rng) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _kinds(path: Path) -> list[Mutation]:
    head = path.read_bytes()[:8] if path.is_file() else b""
    if head == SIGNATURE:
        return [_bytes] * 4 + [_truncate] + HDF5
    if path.suffix == ".emc":
        return [_bytes, _truncate, _word, _word, _word]
    if path.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup"):
        return [_json] * 5 + [_bytes, _truncate, _remove]
    if path.suffix in (".csv", ".dat", ".json", ".txt"):
        return [_lines] * 5 + [_bytes, _truncate]
    return [_bytes, _bytes, _truncate, _remove]


# Bytes


def _truncate(path: Path, rng: Rng) -> str:
    size = path.stat().st_size
    most = size if rng.random() < 0.7 else min(size, 4096)
    os.truncate(path, keep := int(rng.integers(0, most + 1)))
    return f"cut to {keep} of {size} bytes"


def _bytes(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    changes = [_change(content, rng) for _ in range(int(rng.choice([1, 1, 1, 2, 8, 40])))]
    path.write_bytes(content)
    return ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _change(content: bytearray, rng: Rng) -> str:
    at, kind = _place(content, rng), rng.integers(8)
    if kind < 2 and content:
        content[at] ^= 1 << int(rng.integers(8))
        return f"a bit of byte {at}"
    if kind < 4:
        width = int(rng.choice([1, 2, 4, 8]))
        value = int(_pick(ABSURD, rng)) % 256**width
        content[at : at + width] = value.to_bytes(width, "little")
        return f"{value} in {width} bytes at {at}"
    length = int(rng.choice([1, 4, 16, 200]))
    if kind < 6:
        noise = [rng.bytes(length), b"\0" * length, b"\xff" * length][int(rng.integers(3))]
        content[at : at + length] = noise
        return f"{length} bytes overwritten at {at}"
    if kind == 6:
        content[at:at] = rng.bytes(length)
        return f"{length} bytes inserted at {at}"
    del content[at : at + length]
    return f"{length} bytes removed at {at}"


def _place(content: bytearray, rng: Rng) -> int:
    marks = [found.start() for found in MARKS.finditer(content)]
    kind = rng.random()
    if marks and kind < 0.5:
        return min(int(_pick(marks, rng)) + int(rng.integers(96)), len(content) - 1)
    return int(rng.integers(max(min(len(content), 1024 if kind < 0.7 else 2**62), 1)))


def _word(path: Path, rng: Rng) -> str:
    words = np.frombuffer(path.read_bytes()[: path.stat().st_size // 4 * 4], "<i4").copy()
    at = int(rng.integers(min(len(words), int(rng.choice([3, 256, 300, 2**30])))))
    words[at] = value = int(_pick([n for n in ABSURD if -(2**31) <= n < 2**31], rng))
    path.write_bytes(words.tobytes())
    return f"word {at} is {value}"


def _remove(path: Path, rng: Rng) -> str:
    path.unlink()
    kind = rng.integers(3)
    if kind == 1:
        path.mkdir()
    if kind == 2:
        path.symlink_to(_pick([path.name, "gone", "."], rng))
    return ("removed", "a folder in its place", "a link in its place")[kind]


# Zarr and text


def _json(path: Path, rng: Rng) -> str:
    tree = json.loads(path.read_text())
    places = list(_walk(tree))
    holder, key = _pick(places, rng)
    kind = rng.integers(4)
    if kind == 0:
        del holder[key]
        text = "removed"
    elif kind == 1 and isinstance(holder, dict):
        holder[str(_pick(["zarr_format", "shape", "x", ""], rng))] = holder.pop(key)
        text = "renamed"
    else:
        holder[key] = text = _pick(ODD_JSON, rng)
        if isinstance(text, int) and isinstance(tree, dict) and kind == 2:
            name = _pick(["shape", "chunks", "chunk_shape"], rng)
            for inside, place in places:
                if place == name and isinstance(inside[place], list) and inside[place]:
                    inside[place][int(rng.integers(len(inside[place])))] = text
    path.write_text(json.dumps(tree))
    return f"{key} {text!r}"


def _walk(tree: Any) -> Any:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _walk(tree[key])


def _lines(path: Path, rng: Rng) -> str:
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    at, kind = int(rng.integers(len(lines))), int(rng.integers(9))
    fields = lines[at].split(",")
    column = int(rng.integers(len(fields)))
    if kind < 4:
        fields[column] = str(_pick(ODD_FIELDS, rng))
        lines[at] = ",".join(fields)
    elif kind == 4:
        lines[at] = ",".join(fields[:column] + fields[column + 1 :])
    elif kind == 5:
        lines.insert(at, lines[int(rng.integers(len(lines)))])
    elif kind == 6:
        del lines[at]
    elif kind == 7:
        lines[at] = lines[at] + str(_pick([",", ",x", '"', "\r", "\x00", "\x1a"], rng))
    else:
        order = rng.permutation(len(fields))
        lines[at] = ",".join(np.array(fields, object)[order])
    encoding = str(rng.choice(["utf-8"] * 18 + ["utf-16", "utf-8-sig"]))
    path.write_bytes("\n".join(lines).encode(encoding, "surrogateescape"))
    return f"line {at + 1}, kind {kind}, {encoding}"


# HDF5


def _objects(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names


def _datasets(file: h5py.File) -> list[str]:
    return [name for name in _objects(file) if isinstance(file.get(name), h5py.Dataset)]


@np.errstate(all="ignore")
def _dtype(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        name = _pick(_datasets(file), rng)
        values = file[name][()]
        del file[name]
        kind = int(rng.integers(10))
        if kind == 0:
            dtype: Any = h5py.string_dtype()
            values = np.full(np.shape(values), "text", object)
        elif kind == 1:
            dtype = np.dtype([("a", "i4"), ("b", "f8")])
            values = np.zeros(np.shape(values), dtype)
        elif kind == 2:
            dtype = h5py.vlen_dtype(np.int32)
            values = None
        elif kind == 3:
            dtype = h5py.ref_dtype
            values = None
        else:
            dtype = np.dtype(str(_pick(DTYPES, rng)))
            values = (
                np.zeros(np.shape(values), dtype) if kind < 6 else np.asarray(values).astype(dtype)
            )
        shape = np.shape(values) if values is not None else (5, 6, 7)
        file.create_dataset(name, shape, dtype, data=values)
        return f"{name} is {dtype}"


def _shape(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        name = _pick(_datasets(file), rng)
        old = file[name]
        shape, dtype = list(old.shape or (1,)), old.dtype
        del file[name]
        kind = int(rng.integers(7))
        if kind == 0:
            file.create_dataset(name, data=h5py.Empty("f4"))
            return f"{name} has no shape"
        if kind == 1:
            shape = [int(n) for n in _pick([(), (0,), (3,), (2, 3), (2, 3, 4), (1,) * 6], rng)]
        else:
            axis = int(rng.integers(len(shape) or 1))
            huge = [0, 1, 2**20, 2**31, 2**40, 2**62]
            shape = shape or [1]
            shape[axis] = int(_pick([*huge, shape[axis] + 1, max(shape[axis] - 1, 0)], rng))
        options: dict[str, Any] = {}
        if 0 not in shape and shape and kind > 2:
            most = [1, 2, 64, 2**15, 2**20, 2**28]
            options["chunks"] = tuple(min(int(_pick(most, rng)), n) for n in shape)
            if kind > 4:
                options["compression"] = "gzip"
        file.create_dataset(name, tuple(shape), dtype, **options)
        return f"{name} has shape {shape}, {options}"


def _resize(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        name = _pick(_datasets(file), rng)
        values = np.atleast_1d(file[name][()])
        length = max(len(values) + int(_pick([-3, -1, 1, 3, 100], rng)), 0)
        del file[name]
        file[name] = np.resize(values, (length, *values.shape[1:]))
        return f"{name} has length {length}"


def _values(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        dataset = file[_pick(_datasets(file), rng)]
        values = dataset[()]
        flat = np.atleast_1d(values).ravel()
        value: Any = _pick([*ABSURD, np.nan, np.inf, -np.inf], rng)
        at = slice(None) if rng.random() < 0.3 else int(rng.integers(max(flat.size, 1)))
        with np.errstate(all="ignore"):
            if h5py.check_vlen_dtype(dataset.dtype) not in (None, str, bytes):
                _put_lists(dataset, flat, np.arange(flat.size)[at], [value])
            else:
                flat[at] = np.asarray(value).astype(dataset.dtype)
                dataset[()] = flat.reshape(np.shape(values))
        return f"{value} in {dataset.name}"


def _put_lists(dataset: h5py.Dataset, lists: np.ndarray, places: np.ndarray, value: Any) -> None:
    """Put a list at some places; h5py does not survive a number instead."""
    base = h5py.check_vlen_dtype(dataset.dtype)
    for place in np.ravel(places):
        lists[place] = np.asarray(value).astype(base)
    space = dataset.id.get_space()
    dataset.id.write(space, space, lists.astype(dataset.dtype))


def _storage(path: Path, rng: Rng) -> str:
    """Lead the file's own pointers to a dataset's bytes astray."""
    with h5py.File(path, "r", locking=False) as file:
        name = _pick(_datasets(file), rng)
        dataset = file[name]
        if dataset.chunks:
            n_chunks = dataset.id.get_num_chunks()
            where = dataset.id.get_chunk_info(int(rng.integers(n_chunks))).byte_offset
        else:
            where = dataset.id.get_offset()
    content = bytearray(path.read_bytes())
    pattern = int(where).to_bytes(8, "little")
    at, wrong = content.index(pattern), int(_pick([*ABSURD, where + 1, len(content)], rng))
    content[at : at + 8] = (wrong % 2**64).to_bytes(8, "little")
    path.write_bytes(content)
    return f"storage of {name} is at {wrong}"


def _elsewhere(path: Path, rng: Rng) -> str:
    """Put a dataset's values into another file, which may not be there or not hold them."""
    other = str(_pick(["gone.bin", path.name, "/dev/zero", "short.bin", "."], rng))
    path.with_name("short.bin").write_bytes(b"\1" * 100)
    with h5py.File(path, "r+") as file:
        name = _pick(_datasets(file), rng)
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if rng.random() < 0.5:
            offset, size = int(_pick([0, 50, 2**40], rng)), int(np.prod(shape)) * dtype.itemsize
            file.create_dataset(name, shape, dtype, external=[(other, offset, size)])
            return f"{name} is external in {other} from {offset}"
        layout = h5py.VirtualLayout(shape, dtype)
        inner = str(_pick([name, "none", "/"], rng))
        layout[...] = h5py.VirtualSource(other if rng.random() < 0.7 else ".", inner, shape)
        file.create_virtual_dataset(name, layout, fillvalue=3)
        return f"{name} is virtual, of {inner} in {other}"


def _attribute(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        item = file[_pick(["/", *_objects(file)], rng)]
        if len(item.attrs) and rng.random() < 0.7:
            name = _pick(sorted(item.attrs), rng)
            del item.attrs[name]
        else:
            name = str(_pick(["headings", "CLASS", "units", "x"], rng))
        odd = [None, "text", b"\xff\xfe", 2**62, np.nan, np.arange(3), ["a", "b"], h5py.Empty("f4")]
        odd += ["x" * 60000, np.zeros((2, 2)), file.ref, np.array([], "f8")]
        value = odd[int(rng.integers(len(odd)))]
        if value is not None:
            item.attrs[name] = value
        return f"attribute {name} of {item.name}"


def _link(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as file:
        name = _pick(_objects(file), rng)
        above, _, last = name.rpartition("/")
        group = file[above or "/"]
        del group[last]
        kind = int(rng.integers(8))
        if kind == 0:
            group[last] = h5py.SoftLink(f"/{name}")
        elif kind == 1:
            group[last] = file[above or "/"]
        elif kind == 2:
            group[last] = file["/"]
        elif kind == 3:
            group[last] = h5py.SoftLink("/gone/away")
        elif kind == 4:
            group[last] = h5py.ExternalLink(_pick([path.name, "gone.h5", "/dev/null"], rng), name)
        elif kind == 5:
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other[name] = h5py.ExternalLink(path.name, name)
            group[last] = h5py.ExternalLink("other.h5", name)
        elif kind == 6:
            group[last] = h5py.SoftLink("a/" * int(rng.integers(1, 400)))
        return f"{name} removed, link of kind {kind}"


def _swap(path: Path, rng: Rng) -> str:
    """Put a group for a dataset, a dataset for a group, or one dataset for another."""
    with h5py.File(path, "r+") as file:
        names = _objects(file)
        one, other = _pick(names, rng), _pick(names, rng)
        kind = int(rng.integers(3))
        if kind == 0:
            del file[one]
            file.create_group(one)
        elif kind == 1:
            del file[one]
            file[one] = np.arange(6.0).reshape(1, 2, 3)
        else:
            kept = file[other]
            del file[one]
            file[one] = kept
        return f"{one}, {('a group', 'a dataset', f'as {other}')[kind]}"


HDF5 = [_dtype, _dtype, _shape, _shape, _resize, _values, _values, _storage, _storage]
HDF5 += [_elsewhere, _attribute, _link, _link, _swap]
