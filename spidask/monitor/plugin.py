"""The scheduler's side: a plugin that adds up events and adds a page to the dashboard."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import performance_report
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import IOLoop

from spidask.monitor.events import TOPIC
from spidask.monitor.totals import Totals

if TYPE_CHECKING:
    from distributed import Client, Scheduler

log = logging.getLogger(__name__)

N_KEPT_EVENTS = 1000
"""Events that the scheduler keeps as they came; by default these are 100 000, with pictures."""


class Monitor(SchedulerPlugin):
    """Adds up a job's events on the scheduler and shows them on the dashboard's page `/spidask`."""

    # A second driver on the same scheduler goes on with the first one's page.
    idempotent = True

    def __init__(self) -> None:
        self.totals = Totals()

    async def start(self, scheduler: Scheduler) -> None:
        """Add the page to the dashboard, if there is one.

        Parameters
        ----------
        scheduler : distributed.Scheduler
            Where the plugin runs.
        """
        try:
            _bound_events(scheduler)
            _add_page(scheduler)
        except Exception:
            # These are internals of distributed; a job is worth more than its page.
            log.warning("the dashboard has no page %s", TOPIC, exc_info=True)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take in an event.

        Parameters
        ----------
        topic : str
            Only `TOPIC` matters.
        msg : Any
            What `tell` sent.
        """
        if topic == TOPIC:
            # Clocks of nodes differ a little; nothing may lie in the scheduler's future.
            self.totals.add({**msg, "time": min(msg["time"], time.time())})

    def remove_worker(
        self,
        scheduler: Scheduler,  # noqa: ARG002 (given by this name)
        worker: str,
        **_facts: Any,
    ) -> None:
        """Forget a worker's GPUs.

        Parameters
        ----------
        scheduler : distributed.Scheduler
            Where the plugin runs.
        worker : str
            Address of the worker that has left.
        **_facts : Any
            Not used.
        """
        self.totals.forget_worker(worker)


def _bound_events(scheduler: Scheduler) -> None:
    topic = scheduler._broker._topics[TOPIC]
    topic.events = deque(topic.events, maxlen=N_KEPT_EVENTS)


def _add_page(scheduler: Scheduler) -> None:
    # Imported where the page is shown: workers that only tell need no plots.
    from bokeh.server.tornado import BokehTornado
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables

    from spidask.monitor.page import show_page

    dashboards = [
        app for app in scheduler.http_application.applications if isinstance(app, BokehTornado)
    ]
    variables = template_variables(scheduler)
    if not dashboards or TOPIC in variables["pages"]:
        return
    pages = BokehApplication(
        {f"/{TOPIC}": show_page},
        scheduler,
        prefix=dashboards[0].prefix,
        template_variables=variables,
    )
    # The dashboard's own pages share this list, and so get the tab.
    variables["pages"].insert(1, TOPIC)
    scheduler.http_application.add_application(pages)
    pages.initialize(IOLoop.current())
    pages.start()


@contextmanager
def watch(client: Client | None) -> Iterator[None]:
    """Show a job's events on the dashboard of a client's scheduler.

    Parameters
    ----------
    client : distributed.Client or None
        Whose scheduler; nothing is done without one. The page stays after the block.
    """
    if client is not None:
        try:
            client.register_plugin(Monitor(), name=TOPIC)
        except Exception as error:
            # A scheduler of somebody else may lack spidask, or refuse plugins.
            log.warning("the dashboard has no page %s: %s", TOPIC, error)
    yield


@contextmanager
def report_performance(client: Client | None, path: str | Path) -> Iterator[None]:
    """Write Dask's performance report of a stage, one file that needs nothing from the net.

    Parameters
    ----------
    client : distributed.Client or None
        Whose scheduler reports; nothing is written without one.
    path : str or pathlib.Path
        The HTML file.
    """
    if client is None:
        yield
        return
    # It quotes the code that asked for it, four frames up: behind `_close` and contextlib.
    report = performance_report(filename=str(path), mode="inline", stacklevel=4)
    # The report asks for the current client, which may be another by default.
    with client.as_current():
        report.__enter__()
    try:
        yield
    finally:
        with client.as_current():
            _close(report, Path(path))


def _close(report: performance_report, path: Path) -> None:
    try:
        report.__exit__(None, None, None)
        # Its icon is the one thing that a browser would fetch from the net.
        path.write_text(re.sub(r'<link rel="shortcut icon"[^>]*>', "", path.read_text(), count=1))
    except Exception as error:
        # The stage's own error, if any, is what counts.
        log.warning("no performance report at %s: %s", path, error)
