"""An output folder is worked on by one process at a time."""

import os
import signal
import subprocess
import sys

import pytest

from spidask.errors import StoreError
from spidask.records import find_holder, hold

HOLD = """
import sys
from spidask.records import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_its_process_ends_however(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    told = f"process {other.pid} on "
    assert find_holder(tmp_path).startswith(told)
    with pytest.raises(StoreError, match=f"is worked on by {told}.*another output"):
        hold(tmp_path).__enter__()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert find_holder(tmp_path) is None
    with hold(tmp_path):
        assert find_holder(tmp_path).startswith(f"process {os.getpid()} on ")
    assert find_holder(tmp_path) is None


def test_nobody_holds_what_is_not_there(tmp_path):
    assert find_holder(tmp_path / "no") is None
