"""The command line: the only place that prints or sets up logging."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress

from spidask import checks, pipeline
from spidask.centre import find_centre
from spidask.cluster import connect
from spidask.comparison import compare as compare_selections
from spidask.comparison import format_comparison
from spidask.config import (
    Cluster,
    Config,
    Labels,
    load_config,
    parse_config,
    read_settings,
    schema_json,
)
from spidask.conversion import Codec, Converted, Form
from spidask.conversion import convert as convert_stack
from spidask.errors import SpidaskError
from spidask.inference import Shard
from spidask.io.layout import DATASET
from spidask.io.manifest import read_config
from spidask.io.tables import write_comparison_csv
from spidask.planning import make_plan
from spidask.status import measure_status

app = typer.Typer(
    help="Single hits of X-ray free-electron laser beamtimes, selected on a Dask cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)
Command = TypeVar("Command", bound=Callable[..., None])
ConfigFile = Annotated[Path, typer.Argument(help="The beamtime's YAML file.", metavar="CONFIG")]
Output = Annotated[Path, typer.Argument(help="Output folder of `spidask run`.", metavar="OUT")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="A setting that goes before the file's."),
]


def command(function: Command) -> Command:
    """Make a function a command whose errors are one line and exit code 2.

    Parameters
    ----------
    function : callable
        The command; its name and docstring are shown to the user.

    Returns
    -------
    callable
        The same, registered.
    """

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _set_up_logging()
        try:
            function(*args, **kwargs)
        except SpidaskError as error:
            print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:
            print(f"error: {_say_trouble(error)}", file=sys.stderr)
            raise typer.Exit(2) from None

    app.command(function.__name__.removesuffix("_"))(wrapped)
    return cast(Command, wrapped)


@command
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the beamtime.", metavar="OUT")],
    config: Annotated[Path | None, typer.Option(help="A beamtime's YAML file.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a run.")] = None,
    runs: Annotated[int | None, typer.Option(help="Runs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything drawn.")] = None,
) -> None:
    """Compute a beamtime: raw runs, darks, mask, gain, labels and, kept apart, the truth."""
    values: dict[str, Any] = {"runs": {"files": [str(out / "r*.h5")]}, "output": str(out)}
    if config:
        values = read_settings(config)
    given = {"folder": str(out), "frames": frames, "runs": runs, "seed": seed}
    section = {} if values.get("simulation") is None else values["simulation"]
    if isinstance(section, dict):  # anything else is refused with the other settings
        section = section | {key: v for key, v in given.items() if v is not None}
    values["simulation"] = section
    folder = pipeline.make_beamtime(parse_config(values))
    console.print(f"beamtime: {folder}")


@command
def check(config: ConfigFile, set_: Overrides = None) -> None:
    """Say all that is wrong with a config and its files, from headers only."""
    problems = checks.check(load_config(config, set_ or []))
    for problem in problems:
        print(problem)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(2)
    print(f"{len(problems)} warnings, nothing that stops a run" if problems else "no problems")


@command
def plan(config: ConfigFile, set_: Overrides = None) -> None:
    """Say how much work a config is, without computing anything."""
    for line in make_plan(load_config(config, set_ or [])).lines():
        print(line)


@command
def run(
    config: ConfigFile,
    until: Annotated[
        str, typer.Option(help="Last stage: " + ", ".join(pipeline.STAGES))
    ] = "report",
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more runs when all are done.")
    ] = False,
    set_: Overrides = None,
) -> None:
    """Train, classify, select, export and report; what is done is not done again."""
    settings = load_config(config, set_ or [])
    _refuse_problems(settings, follow)
    with _progress() as progress:
        manifest = pipeline.run(settings, until, progress, follow=follow)
    _print_counts(settings, manifest)


@command
def status(out: Output) -> None:
    """Say what is done and what is missing."""
    for line in measure_status(out).lines():
        print(line)


@command
def select(out: Output, set_: Overrides = None) -> None:
    """Select and hand off anew from stored labels, without inference."""
    manifest = pipeline.select_again(out, set_ or [])
    _print_counts(parse_config(manifest["config"]), manifest)


@command
def report(out: Output) -> None:
    """Write the report anew."""
    print(pipeline.report_again(out))


@command
def compare(
    out: Annotated[
        list[Path],
        typer.Argument(help="Output folders, or selection.csv of them.", metavar="OUT [OTHER ...]"),
    ],
    truth: Annotated[str | None, typer.Option(help="CSV of run,index,label, or a glob.")] = None,
    within: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Judge frames of such a diameter alone, nm."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Show the published rows too.")] = False,
    csv: Annotated[Path | None, typer.Option(help="File to write the table to.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write OUT/comparison.csv, for `spidask report`.")
    ] = False,
) -> None:
    """Compare selections with the truth and with each other, on the same frames."""
    known = (out[0] / "manifest.json").exists()
    meanings = read_config(out[0]).labels if truth and known else Labels()
    table = compare_selections(*out, truth=truth, meanings=meanings, within=within, paper=paper)
    print(format_comparison(table))
    files = [csv] if csv else []
    if save:
        files.append((out[0] if out[0].is_dir() else out[0].parent) / "comparison.csv")
    for file in files:
        write_comparison_csv(table, file)
        print(file)


@command
def geometry(config: ConfigFile, set_: Overrides = None) -> None:
    """Find beam centre and region of interest from the powder of hits."""
    for line in find_centre(load_config(config, set_ or [])).lines():
        print(line)


@command
def convert(
    source: Annotated[Path, typer.Argument(help="Stack of frames to read.", metavar="IN")],
    target: Annotated[
        Path,
        typer.Argument(help="What to write: .zarr, .h5, .cxi or .emc.", metavar="OUT"),
    ],
    dataset: Annotated[str, typer.Option(help="Path of the frames in IN.")] = DATASET,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="zarr, hdf5, cxi, dragonfly (HDF5) or emc; else by suffix."),
    ] = None,
    codec: Annotated[Codec, typer.Option(help="lz4 or zstd.")] = "lz4",
    shape: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="ROWS COLUMNS", help="Of Dragonfly's frames."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes of this machine; 0: this one.")
    ] = 0,
) -> None:
    """Convert frames into another form, compressed for fast reading, and compare all values."""
    options = {"dataset": dataset, "form": form, "codec": codec, "shape": shape}
    for line in _convert(workers, source, target, **options).lines():
        print(line)


@command
def schema() -> None:
    """Print the JSON schema of the YAML file, for editors."""
    print(schema_json())


def main() -> None:
    """Run the command line."""
    # A batch system's request to end, or a terminal that is gone: leave by the way that cancels
    # the workers' jobs. What is ignored, as under nohup, stays so.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    app()


def _convert(workers: int, source: Path, target: Path, **options: Any) -> Converted:
    if not workers:
        return convert_stack(source, target, **options)
    cluster = Cluster(kind="local", gpus=0, cpu_workers=workers)
    with TemporaryDirectory() as folder, connect(cluster, folder) as client:
        return convert_stack(source, target, client=client, **options)


def _say_trouble(error: OSError) -> str:
    # HDF5 gives no name and several lines.
    place = f"{error.filename}: " if error.filename else ""
    text = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return f"{place}{text}; check paths, permissions and free space, then run the command again"


def _set_up_logging() -> None:
    # One handler, rich on a terminal and plain lines in a log file.
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    rich = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    logger = logging.getLogger("spidask")
    logger.handlers = [rich if sys.stderr.isatty() else plain]
    logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _refuse_problems(settings: Config, follow: bool) -> None:
    # Before anything is simulated or trained.
    problems = checks.check(settings)
    if follow:  # files and labelled runs may still be to come
        problems = [problem for problem in problems if _is_about_settings(problem)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(2)


def _is_about_settings(problem: checks.Problem) -> bool:
    section = problem.place.partition(".")[0]
    return section in Config.model_fields and section not in ("runs", "labels")


@contextmanager
def _progress() -> Iterator[pipeline.OnShard]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("shards", total=None)
        yield lambda _, n_shards: bar.update(task, total=n_shards, advance=1)


class _Lines:
    """About twenty lines of progress for a log, however many shards there are."""

    def __init__(self) -> None:
        self.shards = self.frames = self.hits = 0

    def __call__(self, shard: Shard, n_shards: int) -> None:
        self.shards += 1
        self.frames += shard.n_frames
        self.hits += shard.n_hits
        if self.shards == n_shards or self.shards % max(n_shards // 20, 1) == 0:
            logging.getLogger(__name__).info(
                "%d of %d shards, %d frames, %.1f %% hits",
                self.shards,
                n_shards,
                self.frames,
                100 * self.hits / max(self.frames, 1),
            )


def _print_counts(config: Config, manifest: dict[str, Any]) -> None:
    counts = manifest["counts"]
    if "select" in counts:
        reasons = {k: v for k, v in counts["select"].items() if k not in ("runs", "frames")}
        total = " + ".join(f"{n} {name.replace('_', ' ')}" for name, n in reasons.items())
        print(f"{counts['select']['frames']} frames = {total}")
    for row, numbers in counts.get("metrics", {}).items():
        told = ", ".join(
            f"{k.replace('_', ' ')} {v:.4g}" for k, v in numbers.items() if v is not None
        )
        print(f"{row}: {told}")
    report_file = Path(config.output) / "report.html"
    if report_file.exists():
        print(report_file)
