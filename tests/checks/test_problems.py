"""Problems are data; alike ones are told as one."""

from spidask.checks.problems import Problem, as_problem, group
from spidask.errors import ConfigError, DataError


def test_a_problem_is_one_line():
    problem = Problem("hits.window", "5 is too short; set 128", "warning")
    assert str(problem) == "warning: hits.window: 5 is too short; set 128"


def test_errors_about_settings_bring_their_place():
    found = as_problem(ConfigError("runs.pattern: no group"), "runs.files")
    assert found == Problem("runs.pattern", "no group")


def test_other_errors_are_given_one():
    found = as_problem(DataError("labels.csv: no such table"), "labels.file")
    assert found == Problem("labels.file", "labels.csv: no such table")


def test_three_alike_are_told_one_by_one():
    three = [Problem(f"r{n}.h5", "is empty") for n in range(3)]
    assert group(three) == three


def test_four_alike_become_one():
    four = [Problem(f"r{n}.h5", f"truncated, {n} of 9 bytes") for n in range(4)]
    other = Problem("r9.h5", "is empty")
    assert group([four[0], other, *four[1:]]) == [
        Problem("r0.h5, r1.h5, r2.h5 and 1 more", "truncated, 0 of 9 bytes (4 alike)"),
        other,
    ]


def test_severities_are_kept_apart():
    mixed = [Problem("a", "b", "error"), Problem("a", "b", "warning"), Problem("a", "b", "error")]
    assert group(mixed) == mixed[:2]
