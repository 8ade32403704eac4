"""The page itself: numbers, plots, pictures and failures."""

from __future__ import annotations

import base64
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any, cast

from bokeh.layouts import column, row
from bokeh.models.widgets import Div
from bokeh.palettes import inferno
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from PIL import Image

from spidask.monitor import panels
from spidask.monitor.events import TOPIC
from spidask.monitor.panels import FAILED, FRAMES, GREY, HEIGHT, HITS, SIDE_WIDTH, SINGLE, Panel
from spidask.monitor.totals import N_PICTURES, Totals

if TYPE_CHECKING:
    from bokeh.document import Document
    from distributed import Scheduler

    from spidask.monitor.plugin import Monitor

PERIOD_MS = 1000
"""How often the page looks for news."""
MOVING = ("numbers", "throughput", "progress")
"""What changes with time alone."""
N_CAUSES = 8
"""Causes of failures that are listed."""
CARD = (
    "flex:1 1 auto;background:#fff;border:1px solid #D5D8DC;border-radius:4px;padding:6px 12px;"
    "font-family:Helvetica,Arial,sans-serif;white-space:nowrap;"
)
PICTURE = "max-width:100%;max-height:76px;display:block"


def show_page(scheduler: Scheduler, extra: Mapping[str, Any], doc: Document) -> None:
    """Fill a document with the page and keep it up to date.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        Its plugin `TOPIC` holds the totals.
    extra : mapping
        Variables of the dashboard's template.
    doc : bokeh.document.Document
        One for each browser tab.
    """
    parts = {
        "numbers": _numbers(),
        "throughput": panels.throughput_panel(),
        "progress": panels.progress_panel(),
        "parts": panels.parts_panel(),
        "hit_rate": panels.hit_rate_panel(),
        "funnel": panels.funnel_panel(),
        "training": panels.training_panel(),
        "pictures": _pictures(),
        "gpu": panels.gpu_panel(),
        "failures": _failures(),
    }
    roots = [panel.root for panel in parts.values()]
    rows = [roots[:1], roots[1:4], roots[4:7], roots[7:]]
    doc.add_root(column(*(_row(*r) for r in rows), sizing_mode="stretch_width", spacing=6))
    doc.title = "spidask"
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME

    seen = -1

    def update() -> None:
        nonlocal seen
        totals, now = cast("Monitor", scheduler.plugins[TOPIC]).totals, time.time()
        for name, panel in parts.items():
            if name in MOVING or totals.n_events != seen:
                panel.update(totals, now)
        seen = totals.n_events

    update()
    doc.add_periodic_callback(update, PERIOD_MS)


def _row(*roots: Any) -> Any:
    return row(*roots, sizing_mode="stretch_width", spacing=8)


def _panel(write: Callable[[Totals, float], str], **options: Any) -> Panel:
    # Bokeh wraps the text in a box that is as wide as the text; ours fills its panel.
    fill = ".bk-clearfix { width: 100%; }"
    div = Div(**{"sizing_mode": "stretch_width", "stylesheets": [fill], **options})

    def update(totals: Totals, now: float) -> None:
        # An equal text is not sent again.
        div.text = write(totals, now)

    return Panel(div, update)


def _numbers() -> Panel:
    return _panel(_write_numbers, name="numbers")


def _write_numbers(totals: Totals, now: float) -> str:
    counts, done = totals.all_runs, totals.history(now)
    rate = done.smooth[-1] if len(done.smooth) else 0.0
    window = f"last {done.window:.0f} s" if done.window else ""
    todo = max(totals.n_planned_shards - counts.n_shards, 0)
    since = _clock(now - totals.stage_start) if totals.stage else ""
    cards = [
        ("stage", totals.stage or "-", since and f"for {since}", GREY),
        ("frames labelled", f"{counts.n_frames:,}", _whole(totals.n_planned_frames), FRAMES),
        ("frames / s", f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}", window, FRAMES),
        ("hit rate", _percent(counts.n_hits, counts.n_frames), f"{counts.n_hits:,} hits", HITS),
        (
            "single hits",
            _percent(counts.n_single, counts.n_frames),
            f"{counts.n_single:,} frames",
            SINGLE,
        ),
        ("shards", f"{counts.n_shards:,}", _whole(totals.n_planned_shards), FRAMES),
        ("failed shards", f"{len(totals.failed):,}", "", FAILED if totals.failed else GREY),
        (
            "time left",
            _clock(todo / done.shard_rate) if done.shard_rate else "-",
            "at this rate",
            GREY,
        ),
    ]
    return '<div style="display:flex;gap:8px">' + "".join(_card(*c) for c in cards) + "</div>"


def _card(name: str, value: str, note: str, colour: str) -> str:
    return (
        f'<div style="{CARD}border-left:4px solid {colour}">'
        f'<div style="color:#666;font-size:12px">{name}</div>'
        f'<div style="font-size:21px;font-weight:bold">{escape(value)}</div>'
        f'<div style="color:#666;font-size:12px;min-height:1.2em">{escape(note)}</div></div>'
    )


def _pictures() -> Panel:
    return _panel(_write_pictures, name="pictures", height=HEIGHT)


def _write_pictures(totals: Totals, _now: float) -> str:
    shown = [_picture(event) for event in reversed(totals.pictures)]
    title = "Last patterns selected, newest first" if shown else "No patterns yet"
    grid = f"display:grid;grid-template-columns:repeat({N_PICTURES // 2},1fr);gap:6px"
    return f'{_title(title)}<div style="{grid}">{"".join(shown)}</div>'


def _picture(event: Mapping[str, Any]) -> str:
    pattern = event["pattern"]
    url = _png(pattern["pixels"], *pattern["shape"])
    caption = f"{escape(str(event['run']))} / {event['index']}"
    return (
        '<div style="font:11px Helvetica,Arial,sans-serif;color:#444;white-space:nowrap">'
        f'<img src="{url}" style="{PICTURE}">'
        f"{caption}<br>score {event['score']:.2f}</div>"
    )


@lru_cache(maxsize=4 * N_PICTURES)
def _png(pixels: str, height: int, width: int) -> str:
    picture = Image.frombytes("P", (width, height), base64.b64decode(pixels))
    picture.putpalette(_palette())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@lru_cache(maxsize=1)
def _palette() -> bytes:
    missing = "#AAAAAA"
    return bytes.fromhex("".join([missing, *inferno(255)]).replace("#", ""))


def _failures() -> Panel:
    return _panel(
        _write_failures,
        name="failures",
        sizing_mode="fixed",
        width=SIDE_WIDTH,
        height=HEIGHT,
        styles={"overflow": "auto"},
    )


def _write_failures(totals: Totals, _now: float) -> str:
    if not totals.failed:
        return _title("No failed shards")
    counts = Counter(totals.failed.values())
    first: dict[str, tuple[str, int]] = {}
    for key, cause in totals.failed.items():
        first.setdefault(cause, key)
    rows = [
        f"<b>{n} {'shard' if n == 1 else 'shards'}</b>, first {escape(first[cause][0])} / "
        f"{first[cause][1]}: {escape(cause)}"
        for cause, n in counts.most_common(N_CAUSES)
    ]
    style = "font:12px Helvetica,Arial,sans-serif;margin-bottom:6px"
    lines = "".join(f'<div style="{style}">{line}</div>' for line in rows)
    return _title(f"Failed shards: {len(totals.failed):,}", FAILED) + lines


def _title(text: str, colour: str = "#444") -> str:
    style = f"font:bold 13px Helvetica,Arial,sans-serif;color:{colour};margin-bottom:6px"
    return f'<div style="{style}">{text}</div>'


def _whole(n: int) -> str:
    return f"of {n:,}" if n else ""


def _percent(n: int, whole: int) -> str:
    return f"{100 * n / whole:.2f} %" if whole else "-"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
