"""Seconds by kind of work."""

import threading

from spidask import stopwatch
from spidask.stopwatch import measure, take_seconds


def test_times_of_all_threads_add_up_and_are_taken_once(monkeypatch):
    take_seconds()
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))

    @measure("read")
    def read():
        return 7

    assert read() == 7
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert take_seconds() == {"read": 5.0}
    assert take_seconds() == {}
