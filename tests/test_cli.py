"""Whatever goes wrong in a command is one line and exit code 2."""

import errno

import pytest
from typer.testing import CliRunner

from spidask.cli import app


def fail(*words):
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.splitlines()
    return line


@pytest.mark.parametrize("section", ["5", "off", "[1]", "text"])
def test_simulate_refuses_what_is_no_section(tmp_path, section):
    config = tmp_path / "config.yaml"
    config.write_text(f"runs: {{files: [x.h5]}}\noutput: out\nsimulation: {section}\n")
    line = fail("simulate", tmp_path / "beamtime", "--config", config)
    assert line.startswith("error: simulation: ")
    assert "expected a section" in line
    assert not (tmp_path / "beamtime").exists()


def test_simulate_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    line = fail("simulate", tmp_path / "file" / "beamtime", "--frames", 1, "--runs", 1)
    assert line.startswith(f"error: {tmp_path}/file/beamtime")
    assert "Not a directory; check paths" in line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "o/x"), "o/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            OSError("Can't write data\n  (file write failed)"),
            "Can't write data (file write failed)",
        ),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_trouble_of_the_system(monkeypatch, error, text):
    def raise_it(_):
        raise error

    monkeypatch.setattr("spidask.cli.measure_status", raise_it)
    told = "; check paths, permissions and free space, then run the command again"
    assert fail("status", "out") == f"error: {text}{told}"
