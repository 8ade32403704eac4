"""The public names."""

import pickle
import subprocess
import sys

import pytest

import spidask
from spidask import errors
from spidask.errors import DataError


@pytest.mark.parametrize("name", spidask.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(spidask, name).__doc__


def test_importing_the_package_loads_no_torch():
    code = "import sys, spidask, spidask.schema; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="open_runs"):
        _ = spidask.opn_runs


def test_errors_keep_their_facts_when_pickled():
    error = pickle.loads(pickle.dumps(DataError("r1.h5 is truncated", path="r1.h5")))
    assert (str(error), error.path) == ("r1.h5 is truncated", "r1.h5")


def test_what_data_bring_into_a_message_does_not_break_it():
    label = "a\nb\x00\ufeff" + "x" * 5000
    message = str(errors.DataError(f"labels.csv, line 3: label '{label}' is no class; correct it"))
    assert message.startswith(r"labels.csv, line 3: label 'a\nb\x00\ufeffx")
    assert message.endswith("x' is no class; correct it")
    assert len(message) <= errors.MOST_LETTERS
    assert message.isprintable()
    assert str(errors.ConfigError("two\nlines\x00")) == "two\nlines\\x00"
