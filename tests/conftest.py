"""A small beamtime that every test may share: rings are single hits, fringes are not."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from spidask.config import Config, Representation, parse_config
from spidask.networks.compact import Compact
from spidask.networks.member import Member, save_member
from tests.slurm import Slurm, clean_environment, reason_to_skip, start_slurm

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)  # small networks on a busy machine
SHAPE = (40, 48)


def make_frames(n: int, seed: int, hit_rate: float) -> tuple[np.ndarray, list[str]]:
    """Raw frames in photons, shape (n, 40, 48) uint16, and their labels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    fall = 40 / (1 + (np.hypot(y + 3, x - 23.5) / 6) ** 2)
    kinds = {
        "single": fall * (1 + np.cos(np.hypot(y + 3, x - 23.5) / 2)),
        "multiple": fall * (1 + np.cos(0.7 * y + 0.9 * x)),
        "background": np.full(SHAPE, 0.02),
    }
    shares = [hit_rate / 2, hit_rate / 2, 1 - hit_rate]
    labels = random.choice(list(kinds), n, p=shares).tolist()
    means = np.stack([kinds[label] for label in labels])
    return random.poisson(means).astype(np.uint16), labels


@dataclass(frozen=True)
class Beamtime:
    """Where the runs, the labels, the truth and a random member are."""

    folder: Path
    members: list[Path]

    def config(self, output: Path, **sections: dict) -> Config:
        """A config for it; keyword arguments are sections that change it."""
        values = {
            "runs": {"files": [str(self.folder / "r*.h5")], "dataset": "data"},
            "labels": {
                "file": str(self.folder / "labels.csv"),
                "truth": str(self.folder / "truth.csv"),
            },
            "geometry": {"beam_centre_y_px": -3, "beam_centre_x_px": 23.5},
            "preprocessing": {"region": {"y": [0, 36], "x": [4, 44]}},
            "hits": {"threshold": 100.0},
            "inference": {"frames_per_shard": 128, "batch_size": 16},
            "training": {
                "runs": ["r0001"],
                "initial": "random",
                "iterations": 12,
                "batch_size": 16,
                "checkpoint_every": 2,
                "threads": 1,
            },
            "validation": {"runs": ["r0002"]},
            "sizing": {"particle": "sphere"},
            "cluster": {"kind": "inline"},
            "output": str(output),
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return parse_config(values)


def write_run(path: Path, n: int, seed: int, hit_rate: float = 0.6, **options: object) -> list[str]:
    """Write one run; gives its labels."""
    frames, labels = make_frames(n, seed, hit_rate)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=frames, chunks=(1, *SHAPE), **options)
    return labels


@pytest.fixture(scope="session")
def beamtime(tmp_path_factory: pytest.TempPathFactory) -> Beamtime:
    """Runs of 150, 150 and 300 frames; two are labelled, in the third one frame in five hits."""
    folder = tmp_path_factory.mktemp("beamtime")
    rows, truth = ["run,index,label"], ["run,index,label"]
    for number, n, hit_rate in ((1, 150, 0.6), (2, 150, 0.6), (3, 300, 0.2)):
        labels = write_run(folder / f"r000{number}.h5", n, number, hit_rate)
        told = [f"r000{number},{i},{label}" for i, label in enumerate(labels)]
        (truth if number == 3 else rows).extend(told)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        members.append(folder / "given" / f"m{seed}.safetensors")
        save_member(Member(Compact().eval(), Representation(), 0.3), members[-1])
    return Beamtime(folder, members)


@pytest.fixture(autouse=True)
def forget_logging() -> Iterator[None]:
    """Commands log to the stderr of their test, which is closed after it."""
    yield
    for logger in (logging.getLogger(), logging.getLogger("spidask")):
        for handler in [h for h in logger.handlers if type(h) is logging.StreamHandler]:
            logger.removeHandler(handler)
    logging.getLogger("spidask").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A real Slurm of two nodes, which sbatch and so on find from here on; see tests/slurm.py."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with (
        start_slurm(tmp_path_factory.mktemp("slurm")) as started,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in set(os.environ) - set(clean_environment()):
            patch.delenv(name)
        for name, value in started.environment.items():
            patch.setenv(name, value)
        yield started


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


LOST = pytest.StashKey[list[str]]()


@pytest.fixture
def tell_lost(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """Has the end of the tests print the time that a fault cost."""

    def tell(fault: str, seconds: float, undisturbed: float) -> None:
        line = f"{fault}: {seconds:.1f} s instead of {undisturbed:.1f} s"
        request.config.stash.setdefault(LOST, []).append(line)

    return tell


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what faults cost."""
    if lines := config.stash.get(LOST, []):
        terminalreporter.section("time with a fault, and without")
        for line in lines:
            terminalreporter.write_line(line)
