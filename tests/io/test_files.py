"""Which files are a beamtime's, and to which run each belongs."""

from pathlib import Path

import pytest
import zarr

from spidask.errors import ConfigError
from spidask.io import files
from spidask.io.files import find_runs


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_file_is_a_run_in_natural_order(tmp_path):
    touch(tmp_path, "r10.h5", "r9.h5", "r100.cxi")
    zarr.open_group(tmp_path / "r11.zarr", mode="w")
    found = find_runs([f"{tmp_path}/r*", str(tmp_path / "r9.h5")])
    assert list(found) == ["r9", "r10", "r11", "r100"]
    assert found["r9"] == [str(tmp_path / "r9.h5")]
    assert found["r11"] == [str(tmp_path / "r11.zarr")]


def test_a_pattern_joins_files_in_natural_order(tmp_path):
    touch(tmp_path, "r2_s10.h5", "r2_s9.h5", "r1_s0.h5")
    found = find_runs(f"{tmp_path}/*.h5", r"^(?P<run>r\d+)_")
    assert {k: [p.rsplit("/")[-1] for p in v] for k, v in found.items()} == {
        "r1": ["r1_s0.h5"],
        "r2": ["r2_s9.h5", "r2_s10.h5"],
    }


def test_duplicate_names_are_refused_with_both_paths(tmp_path):
    touch(tmp_path, "a/r1.h5", "b/r1.h5")
    with pytest.raises(ConfigError, match=r"run 'r1' would be .*a/r1\.h5 and .*b/r1\.h5") as error:
        find_runs(f"{tmp_path}/**/*.h5")
    assert error.value.run == "r1"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?P<run>", "is no regular expression"),
        (r"(r\d+)", r"has no group 'run'; write \(\?P<run>"),
        (r"(?P<run>x\d+)", r"finds no run in 'r1\.h5'"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path, pattern, why):
    touch(tmp_path, "r1.h5")
    with pytest.raises(ConfigError, match=why):
        find_runs(f"{tmp_path}/*.h5", pattern)


def test_what_matches_nothing_is_named_with_what_is_there(tmp_path):
    touch(tmp_path, *(f"r{n}.h5" for n in range(7)))
    with pytest.raises(
        ConfigError, match=r"x/\*\.h5' matches nothing; .*, holds r0\.h5, .*r4\.h5 and 2 more$"
    ):
        find_runs([f"{tmp_path}/x/*.h5"])
    with pytest.raises(ConfigError, match=r"is a folder and neither a Zarr nor .*\*\.h5"):
        find_runs([str(tmp_path)])


def test_a_name_with_brackets_may_be_a_file(tmp_path):
    touch(tmp_path, "r[1].h5")
    assert list(find_runs(str(tmp_path / "r[1].h5"))) == ["r[1]"]


def name_of(path: str) -> str:
    return Path(path).name


def test_files_are_followed_once_they_are_whole(tmp_path, monkeypatch):
    (tmp_path / "r1.h5").write_bytes(b"1")
    (tmp_path / "r2.h5").write_bytes(b"2")
    growing = iter(range(4))

    def look_again(_seconds):
        # r2 grows until the third look.
        match next(growing):
            case 0 | 1:
                with (tmp_path / "r2.h5").open("ab") as file:
                    file.write(b"2")
            case 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(files.time, "sleep", look_again)
    given = [sorted(map(name_of, found)) for found in files.follow_files([f"{tmp_path}/r*.h5"])]
    assert given == [["r1.h5"], ["r1.h5"], ["r1.h5", "r2.h5"]]


def test_a_followed_file_may_grow_after_a_pause_or_go(tmp_path, monkeypatch):
    path = tmp_path / "r1.h5"
    path.write_bytes(b"1")
    (tmp_path / "r2.h5").write_bytes(b"2")
    looks = iter(range(9))

    def look_again(_seconds):
        match next(looks):
            case 2:
                path.write_bytes(b"11")
            case 5:
                path.unlink()
            case 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(files.time, "sleep", look_again)
    given = [
        {name_of(path): size for path, (size, _) in found.items()}
        for found in files.follow_files([f"{tmp_path}/r*.h5"])
    ]
    # Seen twice, then grown, then seen twice as that, then gone.
    before, after = {"r1.h5": 1, "r2.h5": 1}, {"r1.h5": 2, "r2.h5": 1}
    assert given == [before, before, before, after, after, {"r2.h5": 1}, {"r2.h5": 1}]


def test_a_zarr_folder_that_still_gets_chunks_is_not_whole(tmp_path):
    zarr.open_group(tmp_path / "r1.zarr", mode="w")
    (tmp_path / "r1.zarr" / "c").mkdir()
    before = files._state(str(tmp_path / "r1.zarr"))
    (tmp_path / "r1.zarr" / "c" / "0").write_bytes(b"1")
    assert files._state(str(tmp_path / "r1.zarr")) != before
