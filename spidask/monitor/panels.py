"""The plots of the page, each with a function that brings it up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTickFormatter,
    ColumnDataSource,
    DatetimeTickFormatter,
    FixedTicker,
    HoverTool,
    LinearAxis,
    LinearScale,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Span
from bokeh.models.ui import UIElement
from bokeh.plotting import figure

from spidask.monitor.totals import FUNNEL, PARTS, Bins, Totals, mean_curve

FRAMES, HITS, SINGLE, SELECTED, FAILED = "#0072B2", "#E69F00", "#009E73", "#7B3294", "#C0392B"
"""Colours of what is counted, the same on the whole page; told apart by the colour-blind too."""
PALE_FRAMES, GREY = "#BFDCEB", "#8A8F98"
PART_COLOURS = ("#56B4E9", "#3B6FB6", "#8C6BB1", "#D8A7C7", "#D5D8DC")
STEP_COLOURS = dict(zip(FUNNEL, (FRAMES, PALE_FRAMES, HITS, SINGLE, SELECTED), strict=True))
SEED_COLOURS = (FRAMES, "#D55E00", SINGLE, "#CC79A7", HITS, "#56B4E9", SELECTED, "#555555")
HEIGHT = 236
SIDE_WIDTH = 330
"""Pixels, of panels that stand beside the pictures."""


@dataclass(frozen=True)
class Panel:
    """A part of the page.

    Attributes
    ----------
    root : bokeh.models.ui.UIElement
        What is shown.
    update : callable
        Called with the totals and the time, epoch seconds.
    """

    root: UIElement
    update: Callable[[Totals, float], None]


def throughput_panel() -> Panel:
    """Frames a second over time.

    Returns
    -------
    Panel
        Bars for what the shards of a moment held, a line for the mean of a window.
    """
    source = ColumnDataSource({name: [] for name in ("left", "right", "rate", "smooth")})
    plot = _figure("Frames per second", "frames / s", x_axis_type="datetime")
    bars = {"left": "left", "right": "right", "top": "rate", "bottom": 0, "source": source}
    plot.quad(color=PALE_FRAMES, **bars)
    plot.line("right", "smooth", source=source, color=FRAMES, line_width=2.5)
    _time_axis(plot)
    plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0.[0]")

    def update(totals: Totals, now: float) -> None:
        done = totals.history(now)
        right = _local_ms(done.end)
        left = np.maximum(right - 1e3 * done.width, right[:1] - 1e3 * done.width)
        source.data = {"left": left, "right": right, "rate": done.rate, "smooth": done.smooth}
        if len(done.rate):
            plot.title.text = f"Frames per second (line: mean over {_duration(done.window)})"

    return Panel(plot, update)


def progress_panel() -> Panel:
    """Shards done over time.

    Returns
    -------
    Panel
        A rising area, and the planned number as a line.
    """
    source = ColumnDataSource({"time": [], "done": []})
    plot = _figure("Shards done", "shards", x_axis_type="datetime")
    plot.varea("time", 0, "done", source=source, color=PALE_FRAMES)
    plot.line("time", "done", source=source, color=FRAMES, line_width=2.5)
    planned = Span(dimension="width", line_color=GREY, line_dash="dashed", line_width=2)
    plot.add_layout(planned)
    _time_axis(plot)
    plot.y_range = Range1d(start=0, end=1)
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")

    def update(totals: Totals, now: float) -> None:
        done, n = totals.history(now), totals.all_runs.n_shards
        source.data = {"time": _local_ms(done.end), "done": done.n_shards}
        total = max(totals.n_planned_shards, n)
        planned.location = total
        plot.y_range.end = 1.08 * max(total, 1)
        plot.title.text = f"Shards done: {n:,} of {total:,} (dashed)"

    return Panel(plot, update)


def parts_panel() -> Panel:
    """What the last shards spent their time on.

    Returns
    -------
    Panel
        Stacked bars, one a shard, in the order in which they ended.
    """
    source = ColumnDataSource({name: [] for name in ("x", "shard", *PARTS)})
    plot = _figure("Time per shard", "seconds")
    plot.vbar_stack(
        list(PARTS), x="x", width=0.9, color=PART_COLOURS, source=source, legend_label=list(PARTS)
    )
    plot.add_layout(plot.legend[0], "below")
    plot.legend.orientation = "horizontal"
    plot.legend.update(margin=0, padding=2, spacing=8, border_line_color=None)
    plot.add_tools(HoverTool(tooltips=[("shard", "@shard"), *((p, f"@{p} s") for p in PARTS)]))
    plot.xaxis.visible = False
    plot.y_range.start = 0

    def update(totals: Totals, _now: float) -> None:
        parts, n = totals.parts(), len(totals.recent)
        shards = [f"{event['run']} / {event['number']}" for event in totals.recent]
        source.data = {"x": np.arange(1 - n, 1), "shard": shards, **parts}
        if n:
            mean = np.sum(list(parts.values()), axis=0).mean()
            plot.title.text = f"Time per shard: mean {mean:.3g} s (last {n}, newest right)"

    return Panel(plot, update)


def hit_rate_panel() -> Panel:
    """Hit rate of every run.

    Returns
    -------
    Panel
        A bar a run for hits, a dot for frames that every member accepts.
    """
    tips = [("run", "@name"), ("frames", "@frames{0,0}"), ("hits", "@bar{0.00} %")]
    plot, set_rows = _bars_and_dots(
        ("Hit rate per run", "% of frames"), 8, [*tips, ("single hits", "@dot{0.00} %")]
    )
    plot.xaxis.axis_label = "run"

    def update(totals: Totals, _now: float) -> None:
        runs = [(name, run) for name, run in sorted(totals.runs.items()) if run.n_frames]
        set_rows(
            name=[name for name, _ in runs],
            bar=[100 * run.n_hits / run.n_frames for _, run in runs],
            dot=[100 * run.n_single / run.n_frames for _, run in runs],
            frames=[run.n_frames for _, run in runs],
        )
        plot.title.text = f"Hit rate of {len(runs)} runs (bars: hits, dots: single hits)"

    return Panel(plot, update)


def gpu_panel() -> Panel:
    """Memory and use of the workers' GPUs; hidden where there are none.

    Returns
    -------
    Panel
        A bar a GPU for its memory, a dot for its use.
    """
    tips = [("worker", "@name"), ("device", "@device"), ("memory", "@memory"), ("use", "@dot %")]
    plot, set_rows = _bars_and_dots(("GPUs", "% memory, dots: % use"), 2, tips)
    plot.update(sizing_mode="fixed", width=SIDE_WIDTH)
    plot.y_range = Range1d(start=0, end=105)
    plot.xaxis.axis_label = "worker"
    plot.visible = False

    def update(totals: Totals, _now: float) -> None:
        events = [event for _, event in sorted(totals.gpus.items())]
        plot.visible = bool(events)
        unknown = float("nan")
        set_rows(
            name=[event["worker"].partition("://")[2] for event in events],
            bar=[100 * event["used_bytes"] / event["total_bytes"] for event in events],
            dot=[unknown if e["utilisation"] is None else e["utilisation"] for e in events],
            device=[event["device"] for event in events],
            memory=[_memory(event) for event in events],
        )
        used = sum(event["used_bytes"] for event in events) / 2**30
        plot.title.text = f"{len(events)} GPUs, {used:,.1f} GiB used"

    return Panel(plot, update)


def funnel_panel() -> Panel:
    """How many frames are left after each step.

    Returns
    -------
    Panel
        Horizontal bars on a log scale, with the numbers.
    """
    source = ColumnDataSource({name: [] for name in ("step", "n", "right", "text", "colour")})
    plot = _figure(
        "Funnel", None, x_axis_type="log", y_range=[], x_range=Range1d(start=0.7, end=10)
    )
    plot.hbar(
        "step", left=0.7, right="right", height=0.65, source=source, color="colour", alpha=0.9
    )
    plot.text("right", "step", "text", source=source, x_offset=5, text_baseline="middle")
    plot.renderers[-1].glyph.update(text_font_size="12px", text_color="#333333")
    plot.xaxis.axis_label = "frames (log scale), % of the step above"
    plot.ygrid.visible = False

    def update(totals: Totals, _now: float) -> None:
        steps = totals.funnel()
        counts = list(steps.values())
        before = [0, *counts[:-1]]
        source.data = {
            "step": list(steps),
            "n": counts,
            "right": [max(n, 0.7) for n in counts],
            "text": [_of(n, whole) for n, whole in zip(counts, before, strict=True)],
            "colour": [STEP_COLOURS[step] for step in steps],
        }
        plot.y_range.factors = list(steps)[::-1]
        # Room at the right for the numbers.
        plot.x_range.end = 0.7 * (max(*counts, 100) / 0.7) ** 1.5
        plot.title.text = "Funnel of the selection" if totals.selected else "Funnel so far"

    return Panel(plot, update)


def training_panel() -> Panel:
    """Loss and validation F1 of every seed.

    Returns
    -------
    Panel
        Lines for the loss on the left axis, lines with dots for F1 on the right one.
    """
    loss, f1 = ColumnDataSource(_curves({})), ColumnDataSource(_curves({}))
    dots = ColumnDataSource({"x": [], "y": [], "colour": []})
    plot = _figure("Training", "loss (lines)", y_axis_type="log")
    lines = plot.multi_line(
        "x", "y", source=loss, color="colour", line_width=1.5, legend_field="seed"
    )
    plot.yaxis.ticker = FixedTicker(ticks=[n * 10.0**e for e in range(-9, 6) for n in (1, 2, 5)])
    plot.yaxis.formatter = BasicTickFormatter(precision=6, use_scientific=False)
    # The range of the loss is the loss's alone.
    plot.y_range.renderers = [lines]
    plot.extra_y_ranges = {"f1": Range1d(start=0, end=1.02)}
    plot.extra_y_scales = {"f1": LinearScale()}
    axis = LinearAxis(y_range_name="f1", axis_label="validation F1 (dots)")
    axis.update(axis_label_text_font_style="normal", minor_tick_line_color=None)
    plot.add_layout(axis, "right")
    right: dict[str, Any] = {"color": "colour", "y_range_name": "f1"}
    plot.multi_line("x", "y", source=f1, line_dash="dotted", line_width=1.5, **right)
    plot.scatter("x", "y", source=dots, size=7, **right)
    plot.xaxis.axis_label = "iteration"
    plot.legend.update(location="right", background_fill_alpha=0.6, border_line_color=None)
    plot.legend.update(label_text_font_size="10px", spacing=0, padding=2, label_height=12)

    def update(totals: Totals, _now: float) -> None:
        loss.data = _curves(totals.losses)
        f1.data = _curves(totals.scores)
        dots.data = {
            "x": [x for xs in f1.data["x"] for x in xs],
            "y": [y for ys in f1.data["y"] for y in ys],
            "colour": [
                c for c, xs in zip(f1.data["colour"], f1.data["x"], strict=True) for _ in xs
            ],
        }
        plot.title.text = _training_title(totals)

    return Panel(plot, update)


def _curves(curves: Mapping[str, Bins]) -> dict[str, Any]:
    seeds = sorted(curves)
    pairs = [mean_curve(curves[seed]) for seed in seeds]
    return {
        "x": [x for x, _ in pairs],
        "y": [y for _, y in pairs],
        "colour": [SEED_COLOURS[i % len(SEED_COLOURS)] for i in range(len(seeds))],
        "seed": [f"seed {seed}" for seed in seeds],
    }


def _training_title(totals: Totals) -> str:
    if not totals.iterations:
        return "Training: none yet"
    best = [mean_curve(scores)[1].max() for scores in totals.scores.values()]
    told = f", best validation F1 {max(best):.3f}" if best else ""
    return f"Training: iteration {max(totals.iterations.values()):,}{told}"


def _bars_and_dots(
    texts: tuple[str, str],
    n_labels: int,
    tips: list[tuple[str, str]],
) -> tuple[Any, Callable[..., None]]:
    # Runs and workers may be hundreds: they stand at whole numbers, and a few are named.
    names = [tip[1].split("{")[0].strip("@ %") for tip in tips]
    source = ColumnDataSource({name: [] for name in ("x", "name", "bar", "dot", *names)})
    plot = _figure(*texts)
    bars = plot.vbar("x", 0.8, "bar", source=source, color=HITS, alpha=0.75)
    plot.scatter("x", "dot", source=source, color=SINGLE, size=6)
    plot.add_tools(HoverTool(tooltips=tips, renderers=[bars]))
    plot.y_range.start = 0
    plot.xaxis.ticker = FixedTicker(ticks=[])

    def set_rows(**columns: list[Any]) -> None:
        n = len(columns["name"])
        source.data = {"x": np.arange(n), **columns}
        ticks = list(range(0, n, max(1, -(-n // n_labels))))
        plot.xaxis.ticker.ticks = ticks
        plot.xaxis.major_label_overrides = {i: columns["name"][i] for i in ticks}

    return plot, set_rows


def _figure(title: str, y_label: str | None, **options: Any) -> Any:
    # Any: Bokeh's annotations know few of the attributes and values that its models take.
    plot: Any = figure(
        title=title,
        height=HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        **{"tools": "", "background_fill_color": "#FFFFFF", **options},
    )
    plot.yaxis.axis_label = y_label
    plot.title.text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_standoff = 3
    plot.axis.minor_tick_line_color = None
    plot.outline_line_color = "#D5D8DC"
    plot.grid.grid_line_color = "#ECEFF1"
    return plot


def _time_axis(plot: Any) -> None:
    plot.xaxis.axis_label = "time of day"
    plot.xaxis.formatter = DatetimeTickFormatter(
        milliseconds="%H:%M:%S", seconds="%H:%M:%S", minsec="%H:%M:%S", minutes="%H:%M"
    )


def _local_ms(seconds: Any) -> Any:
    # Bokeh shows UTC; people at the instrument read their own clock.
    return 1e3 * (np.asarray(seconds) + time.localtime().tm_gmtoff)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _memory(event: Mapping[str, Any]) -> str:
    return f"{event['used_bytes'] / 2**30:.1f} of {event['total_bytes'] / 2**30:.1f} GiB"


def _of(n: int, whole: int) -> str:
    return f"{n:,} ({100 * n / whole:.3g} %)" if whole else f"{n:,}"
