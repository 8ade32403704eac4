"""Labels and maps of every source, read by spidask and by the simplest other way."""

from __future__ import annotations

import csv
import hashlib
import pickle
import resource
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fuzz.frames import Found, get
from fuzz.run_formats import DETECTOR, _photons, _write_cxi
from spidask.config import Labels
from spidask.errors import SpidaskError
from spidask.io.cxi import read_cxi
from spidask.io.dragonfly import make_detector, read_detector, write_detector
from spidask.io.emc import PARTS, read_photons, write_photons, write_photons_binary
from spidask.io.labels import read_labels
from spidask.io.maps import load_map
from spidask.io.photons import find_shape
from spidask.schema import CLASSES, REASONS

CODES: dict[int, Any] = {0: "background", 1: "single", 2: "multiple", -1: None}
LETTERS: dict[str, Any] = {"s": "single", "m": "multiple", "z": None}
TAGS: dict[str, Any] = {"two of them": "multiple", "odd": None}


@dataclass(frozen=True)
class TableFormat:
    """What is read as a whole.

    Attributes
    ----------
    name : str
        For the table.
    write : callable
        Writes healthy files into a folder.
    take : callable
        Folder to the values, as spidask reads them.
    look : callable
        Folder to the values, without spidask; raises where they cannot be read.
    """

    name: str
    write: Callable[[Path], None]
    take: Callable[[Path], Any]
    look: Callable[[Path], Any]

    def prepare(self, folder: Path) -> None:
        """Write what will be damaged."""
        (folder / "seed").mkdir(parents=True)
        self.write(folder / "seed")

    def read(self, case: Path, _home: Path, _number: int) -> Found:
        """Read by spidask; gives the reason where that is refused."""
        try:
            values = self.take(case)
        except SpidaskError as error:
            return {"refused": str(error)}
        return {
            "values": values,
            "digest": hashlib.md5(pickle.dumps(values)).hexdigest(),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def judge(self, case: Path, found: Found, _healthy: Found) -> list[str]:
        """Say what is wrong with what was read, in words."""
        expected = self.look(case)
        return _compare(found["values"], expected)


def _compare(values: Any, expected: Any) -> list[str]:
    if isinstance(values, list):
        if values == expected:
            return []
        pairs = [(v, e) for v, e in zip(values, expected, strict=False) if v != e]
        return [f"{len(values)} rows instead of {len(expected)}, first {pairs[:2]}"]
    wrong = []
    for one, other in zip(values, expected, strict=True):
        with np.errstate(all="ignore"):
            same = np.array_equal(one, np.asarray(other).astype(np.asarray(one).dtype), True)
        if not same:
            wrong.append(f"{one!r} instead of {other!r}")
    return wrong


def _labels(name: str, **settings: Any) -> Callable[[Path], Any]:
    return lambda folder: read_labels(f"{folder}/{name}", Labels(**settings)).values.tolist()


def _write_csv(folder: Path) -> None:
    rows = [f"r000{i % 3},{i},{CLASSES[i % 4]},{i},1.5,20,30" for i in range(20)]
    names = "run,index,label,x_min,y_min,x_max,y_max"
    (folder / "labels.csv").write_text("\n".join([names, *rows[:3], *rows[3:]]) + "\n")


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        names = [name.strip() for name in next(reader)]
        rows = [row for row in reader if any(field.strip() for field in row)]
    assert all(len(row) <= len(names) for row in rows)
    return [dict(zip(names, row + [""] * len(names), strict=False)) for row in rows]


def _look_csv(folder: Path) -> list[Any]:
    out = []
    for row in _rows(folder / "labels.csv"):
        label = row["label"].strip()
        assert label in CLASSES
        box = [float(row[n]) if row.get(n, "").strip() else None for n in BOX if n in row]
        name = _name(row, ("run", "index"), ("trainId", "pulseId"), ("timestamp",))
        out.append([*name, label, *box])
    return out


BOX = ("x_min", "y_min", "x_max", "y_max")


def _name(row: dict[str, str], *forms: tuple[str, ...]) -> list[Any]:
    form = next(form for form in forms if set(form) <= row.keys())
    return [row[n].strip() if n == "run" else int(row[n]) for n in form]


def _take_csv(folder: Path) -> Any:
    rows = _labels("labels.csv")(folder)
    return [[None if v != v else v for v in row] for row in rows]


def _write_letters(folder: Path) -> None:
    (folder / "my_classes.dat").write_text("".join(f"{c}\n" for c in "smzs sm mmzzss"))
    lines = [f"{i},r{i % 2},{i * 3},{i}" for i in range(14)]
    (folder / "index.csv").write_text("\n".join(["frame,run,index,timestamp", *lines]) + "\n")


def _look_letters(folder: Path) -> list[Any]:
    letters = [line.strip() for line in (folder / "my_classes.dat").read_text().splitlines()]
    rows = _rows(folder / "index.csv")
    assert len(rows) == len(letters)
    named = [
        [row["run"], int(row["index"]), LETTERS[c]]
        for row, c in zip(rows, letters, strict=True)
        if c
    ]
    return [row for row in named if row[2]]


def _write_specklenn(folder: Path) -> None:
    rows = [f"amo,{90 + i % 2},{i * 4},{i % 4 - 1}" for i in range(16)]
    (folder / "amo06516.label.csv").write_text("\n".join(["exp,run,event_num,label", *rows]) + "\n")


def _look_specklenn(folder: Path) -> list[Any]:
    out = []
    for row in _rows(folder / "amo06516.label.csv"):
        name = f"{row['exp'].strip()}_{int(row['run']):04d}"
        label = row["label"].strip()
        label = label if label in CLASSES else CODES[int(label)]
        out.append([name, int(row["event_num"]), label])
    return [row for row in out if row[2]]


def _write_selection(folder: Path) -> None:
    text = ["run,index,selected,reason,score,diameter_nm"]
    for index, reason in enumerate([*REASONS, ""] * 3):
        text.append(f"r{index % 2},{index},{int(not reason)},{reason},0.5,60.25")
    (folder / "selection.csv").write_text("\n".join(text) + "\n")


def _look_selection(folder: Path) -> list[Any]:
    classes = {"": "single", "not_single": "multiple"}
    rows = _rows(folder / "selection.csv")
    return [
        [row["run"], int(row["index"]), classes[row["reason"]]]
        for row in rows
        if row["reason"] in classes
    ]


def _write_tags(folder: Path) -> None:
    tags = np.random.default_rng(1).permutation(np.repeat(np.arange(4), 3))
    with h5py.File(folder / "r0007.cxi", "w") as file:
        values = (tags == np.arange(3)[:, None]).astype("i1")
        data = file.create_dataset(f"{DETECTOR}/tags", data=values)
        data.attrs["headings"] = ["single", "two of them", "odd"]
        file["entry_1/image_1/tags"] = h5py.SoftLink(f"/{DETECTOR}/tags")
        file["entry_1/trainId"], file["entry_1/pulseId"] = np.arange(12) + 5, np.arange(12) % 3


def _look_tags(folder: Path) -> list[Any]:
    with h5py.File(folder / "r0007.cxi", "r", locking=False) as file:
        tags, entry = _find_tags(file)
        names = tags.attrs.get("headings", [f"Tag {n + 1}" for n in range(len(tags))])
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in np.ravel(names)]
        classes = [TAGS.get(n, n) for n in names]
        assert len(classes) == len(tags)
        assert all(c is None or c in CLASSES for c in classes)
        names = (f"{entry}/trainId", f"{entry}/pulseId")
        ids = _ids(file, tags.shape[1], names, "r0007")
        out = []
        for frame, column in enumerate(tags[()].T > 0):
            (label,) = {c for c, is_set in zip(classes, column, strict=True) if is_set and c} or {0}
            if label:
                out.append([*ids[frame], label])
        return out


def _find_tags(file: h5py.File) -> tuple[h5py.Dataset, str]:
    for place in ("*/instrument_*/detector_*/tags", "*/image_*/tags"):
        found = [(file, "")]
        for pattern in place.split("/"):
            found = [
                (get(group, name), f"{path}/{name}")
                for group, path in found
                if isinstance(group, h5py.Group)
                for name in group
                if fnmatchcase(name, pattern)
            ]
        tags = [(item, path) for item, path in found if getattr(item, "ndim", 0) == 2]
        if tags:
            return tags[0][0], tags[0][1].split("/")[1]
    raise ValueError("no tags")


def _ids(file: h5py.File, n: int, names: tuple[str, ...], stem: str) -> list[list[Any]]:
    columns = [get(file, name) for name in names]
    for name, column in zip(names, columns, strict=True):
        assert column is not None or file.get(name, getlink=True) is None, "ids that are lost"
    if all(
        isinstance(c, h5py.Dataset) and c.shape == (n,) and c.dtype.kind in "iu" for c in columns
    ):
        return [
            list(row) for row in zip(*(c[()].astype("i8").tolist() for c in columns), strict=True)
        ]
    return [[stem, i] for i in range(n)]


def _write_codes(folder: Path) -> None:
    with h5py.File(folder / "smd.h5", "w") as file:
        file["timestamp"] = np.random.default_rng(1).permutation(16).astype("u8") + 100
        file["hits/kind"] = np.array([1, 2, -99999, 0] * 4, ">f4")


def _look_codes(folder: Path) -> list[Any]:
    with h5py.File(folder / "smd.h5", "r", locking=False) as file:
        codes = file["hits/kind"][()]
        ids = _ids(file, len(codes), ("timestamp",), "smd")
    known = [(ids[i], CODES[int(c)]) for i, c in enumerate(codes) if c != -99999 and c == c]
    assert all(c == c // 1 for c in codes if c == c)
    return [[*name, label] for name, label in known if label]


# What is read as arrays


def _write_detector(folder: Path) -> None:
    y, x = np.mgrid[0:5, 0:6].astype(float)
    write_detector(folder / "det.h5", make_detector(y - 9, x - 2.5, 300.0, y + x > 8))


DETECTOR_FIELDS = ("qx", "qy", "qz", "corr", "mask", "detd", "ewald_rad")


def _take_detector(folder: Path) -> tuple[Any, ...]:
    find_shape(str(folder / "det.h5"))
    detector = read_detector(folder / "det.h5")
    return tuple(np.asarray(getattr(detector, name)) for name in DETECTOR_FIELDS)


def _look_detector(folder: Path) -> tuple[Any, ...]:
    with h5py.File(folder / "det.h5", "r", locking=False) as file:
        return tuple(np.asarray(file[name][()]) for name in DETECTOR_FIELDS)


def _write_maps(folder: Path) -> None:
    random = np.random.default_rng(1)
    np.save(folder / "mask.npy", (random.random((6, 5)) > 0.1).astype("u1"))
    with h5py.File(folder / "maps.h5", "w") as file:
        file["gain"] = random.normal(1, 0.1, (6, 5))
        stack = {"chunks": (2, 6, 5), "compression": "gzip"}
        file.create_dataset("dark", data=random.normal(100, 1, (7, 6, 5)).astype("f4"), **stack)


def _take_maps(folder: Path) -> tuple[Any, ...]:
    whole, region = (6, 5), (1, 5, 0, 4)
    return (
        load_map(f"{folder}/mask.npy", whole, region, "mask"),
        load_map(f"{folder}/maps.h5:gain", whole, region, "gain"),
        load_map(f"{folder}/maps.h5:dark", whole, region, "dark", stack=True),
    )


def _look_maps(folder: Path) -> tuple[Any, ...]:
    cut = (slice(1, 5), slice(0, 4))
    with h5py.File(folder / "maps.h5", "r", locking=False) as file:
        dark, gain = np.asarray(file["dark"][()], float), file["gain"][()]
    dark = np.where(np.isfinite(dark), dark, np.nan)
    mean = np.nanmean(dark, axis=0) if dark.ndim == 3 else dark.reshape(6, 5)
    return np.load(folder / "mask.npy").reshape(6, 5)[cut], gain.reshape(6, 5)[cut], mean[cut]


def _write_cxi_folder(folder: Path) -> None:
    _write_cxi(folder / "r1.cxi")


def _take_cxi(folder: Path) -> tuple[Any, ...]:
    ds = read_cxi(folder / "r1.cxi")
    return ds["patterns"].values, ds["score"].values, ds["index"].values, ds["trainId"].values


def _look_cxi(folder: Path) -> tuple[Any, ...]:
    with h5py.File(folder / "r1.cxi", "r", locking=False) as file:
        data, mask, score = (file[f"{DETECTOR}/{name}"][()] for name in ("data", "mask", "score"))
        index, train = (file[f"entry_1/{name}"][()] for name in ("index", "trainId"))
    return np.where(mask != 0, np.nan, data.astype("f4")), score, index, train


def _write_photons(folder: Path) -> None:
    write_photons(folder / "p.h5", [_photons(9)], 9, 30)


def _write_binary(folder: Path) -> None:
    write_photons_binary(folder / "p.emc", [_photons(9)], 9, 30)


def _take_photons(folder: Path) -> tuple[Any, ...]:
    (path,) = folder.glob("p.*")
    photons = read_photons(path).tocoo()
    counts = photons.data != 0
    return photons.shape, np.stack([part[counts] for part in (*photons.coords, photons.data)]).T


def _look_photons(folder: Path) -> tuple[Any, ...]:
    with h5py.File(folder / "p.h5", "r", locking=False) as file:
        n_pixels = int(np.prod(file["num_pix"][()]))
        ones, multi, counts = (list(file[name][()]) for name in PARTS)
    return _as_list(n_pixels, ones, multi, counts)


def _look_binary(folder: Path) -> tuple[Any, ...]:
    content = (folder / "p.emc").read_bytes()
    n_frames, n_pixels, kind = np.frombuffer(content, "<i4", 3).tolist()
    if kind:
        dense = np.frombuffer(content, {1: "<i4", 2: "<f8"}[kind], n_frames * n_pixels, 1024)
        places = np.nonzero(dense.reshape(n_frames, n_pixels))
        return (n_frames, n_pixels), np.stack([*places, dense[dense != 0]]).T
    lengths = np.frombuffer(content, "<i4", 2 * n_frames, 1024).reshape(2, n_frames)
    cuts = np.cumsum(np.concatenate([lengths[0], lengths[1], lengths[1]]))[:-1]
    total = int(lengths[0].sum() + 2 * lengths[1].sum())
    lists = np.split(np.frombuffer(content, "<i4", total, 1024 + 8 * n_frames), cuts)
    return _as_list(n_pixels, *(lists[k * n_frames : (k + 1) * n_frames] for k in range(3)))


def _as_list(n_pixels: int, ones: Any, multi: Any, counts: Any) -> tuple[Any, ...]:
    frames = [dict.fromkeys(range(0), 0) for _ in ones]
    for frame, *lists in zip(frames, ones, multi, counts, strict=True):
        pairs = [(place, 1) for place in lists[0]] + list(zip(lists[1], lists[2], strict=True))
        for place, n in pairs:
            frame[int(place)] = frame.get(int(place), 0) + int(n)
    rows = [(i, p, n) for i, frame in enumerate(frames) for p, n in sorted(frame.items()) if n]
    return (len(frames), n_pixels), np.array(rows, np.int64).reshape(-1, 3)


TABLE_FORMATS = [
    TableFormat("labels, CSV", _write_csv, _take_csv, _look_csv),
    TableFormat(
        "labels, letters", _write_letters, _labels("my_classes.dat", letters=LETTERS), _look_letters
    ),
    TableFormat(
        "labels, speckleNN",
        _write_specklenn,
        _labels("amo06516.label.csv", codes=CODES),
        _look_specklenn,
    ),
    TableFormat("labels, a selection", _write_selection, _labels("."), _look_selection),
    TableFormat("labels, CXI tags", _write_tags, _labels("r0007.cxi", tags=TAGS), _look_tags),
    TableFormat(
        "labels, codes", _write_codes, _labels("smd.h5:hits/kind", codes=CODES), _look_codes
    ),
    TableFormat("Dragonfly, detector", _write_detector, _take_detector, _look_detector),
    TableFormat("calibration maps", _write_maps, _take_maps, _look_maps),
    TableFormat("CXI, our selection", _write_cxi_folder, _take_cxi, _look_cxi),
    TableFormat("Dragonfly, whole HDF5", _write_photons, _take_photons, _look_photons),
    TableFormat("Dragonfly, whole binary", _write_binary, _take_photons, _look_binary),
]
