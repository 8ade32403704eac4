"""The training loop: it learns, resumes to the last bit, and stops on nonsense."""

import contextlib
import functools

import numpy as np
import pytest
import torch

from spidask.config import Representation, Training
from spidask.errors import DataError, TrainingError
from spidask.networks import learning
from spidask.networks.batches import Labelled, draw_batch, upload
from spidask.networks.checkpoints import list_checkpoints, load_checkpoint
from spidask.networks.classifier import Classifier
from spidask.networks.learning import Team, begin, rate_share, train_rank
from spidask.networks.tensors import load_tensors

SETTINGS = Training(
    initial="random", iterations=6, checkpoint_every=2, batch_size=8, learning_rate=3e-3, threads=1
)


def make_labelled(n: int, seed: int = 0) -> Labelled:
    """Fringes are multiple hits, rings are single ones; easy, but not linear."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:40, 0:48]
    classes = np.arange(n) % 2 + 1
    radius = np.hypot(y + 3, x - 24)
    rings = 3 * (1 + np.cos(radius / 2))
    fringes = 3 * (1 + np.cos(y * 0.7 + x * 0.9))
    means = np.where((classes == 1)[:, None, None], rings, fringes)
    return Labelled(random.poisson(means).astype(np.float32), classes)


def judge(logits):
    return {"validation_f1": float(np.mean(logits > 0))}


def interrupt_at(iteration):
    def watch(row):
        if row["iteration"] == iteration:
            raise KeyboardInterrupt

    return watch


def run(folder, settings=SETTINGS, **options):
    labelled = make_labelled(20)
    build = functools.partial(begin, settings, labelled)
    draw = functools.partial(draw_batch, upload(labelled, "cpu"), 5)
    train_rank(build, draw, labelled.patterns[:6], judge, settings, 5, folder, **options)
    paths = list_checkpoints(folder)
    return [(load_checkpoint(path), load_tensors(path)[0]) for path in paths]


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_training_is_equal_bit_for_bit(tmp_path, ranks):
    settings = SETTINGS.model_copy(update={"ranks": ranks})
    whole = run(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", settings, watch=interrupt_at(3))
    parts = run(tmp_path / "parts", settings)
    assert [c.iteration for c, _ in whole] == [2, 4, 6]
    assert [c.history for c, _ in whole] == [c.history for c, _ in parts]
    for (_, a), (_, b) in zip(whole, parts, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    table = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert table[0] == table[1]
    assert len(table[0].splitlines()) == 7


def test_overfits_a_few_patterns(tmp_path):
    settings = SETTINGS.model_copy(
        update={"iterations": 60, "checkpoint_every": 60, "batch_size": 16}
    )
    labelled = make_labelled(16)
    draw = functools.partial(draw_batch, upload(labelled, "cpu"), 0)
    train_rank(
        functools.partial(begin, settings, labelled),
        draw,
        labelled.patterns,
        judge,
        settings,
        0,
        tmp_path,
    )
    checkpoint = load_checkpoint(list_checkpoints(tmp_path)[-1])
    np.testing.assert_array_equal(checkpoint.validation > 0, labelled.classes == 1)


def test_pieces_are_normalized_by_themselves(tmp_path):
    whole = run(tmp_path / "whole")
    pieces = run(tmp_path / "pieces", SETTINGS.model_copy(update={"ranks": 2}))
    losses = [c.history[0]["loss"] for c, _ in (whole[0], pieces[0])]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.3)


def test_a_rank_draws_its_own_piece_beats_and_leaves_the_files_to_rank_0(tmp_path):
    seen, beats, rows = [], [], []
    labelled = make_labelled(20)
    supply = upload(labelled, "cpu")

    def draw(iteration, part):
        seen.append((iteration, part))
        return draw_batch(supply, 5, iteration, part)

    settings = SETTINGS.model_copy(update={"ranks": 2, "iterations": 2})
    team = Team(1, 2, total=lambda value: 2 * value, beat=lambda: beats.append(len(seen)))
    build = functools.partial(begin, settings, labelled)
    train_rank(build, draw, labelled.patterns, judge, settings, 5, tmp_path, team, rows.append)
    assert seen == [(1, slice(4, 8)), (2, slice(4, 8))]
    assert len(beats) == 2
    assert rows == list(tmp_path.iterdir()) == []


def test_rows_are_watched_as_they_come(tmp_path):
    rows = []
    checkpoints = run(tmp_path, watch=rows.append)
    assert rows == checkpoints[-1][0].history
    assert ["validation_f1" in row for row in rows] == [False, True] * 3


def test_ranks_with_other_checkpoints_are_refused(tmp_path):
    # As if the other rank had found one iteration done.
    team = Team(1, 2, total=lambda value: 2 * value + 1)
    with pytest.raises(DataError, match=r"rank 1 finds 0 iterations done in .* that all workers"):
        run(tmp_path, SETTINGS.model_copy(update={"ranks": 2}), team=team)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "iterations": 20})
    with pytest.raises(TrainingError, match=r"training\.learning_rate"):
        run(tmp_path, settings)


def test_scores_that_are_no_numbers_stop_and_say_why(tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "checkpoint_every": 1})
    with pytest.raises(TrainingError, match=r"^a score is no number at iteration 1; lower train"):
        run(tmp_path, settings)
    assert list_checkpoints(tmp_path) == []


def test_weights_of_another_representation_are_refused(tmp_path):
    settings = SETTINGS.model_copy(
        update={"initial": "shipped", "representation": Representation(scale="linear")}
    )
    with pytest.raises(TrainingError, match=r"training\.representation.*linear.*logarithmic"):
        run(tmp_path, settings)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"width": 0.5}, r"training\.initial: 'shipped' is of another width .* 0\.5"),
        ({"first_filter": 3}, r"another width or first filter than .* training\.first_filter 3"),
        ({"architecture": "resnet18"}, r"training\.architecture: resnet18, .* with compact"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, found):
    with pytest.raises(TrainingError, match=found):
        run(tmp_path, SETTINGS.model_copy(update={"initial": "shipped", **change}))


def test_optimizers_of_earlier_checkpoints_are_not_kept(tmp_path):
    run(tmp_path)
    kept = [path.name for path in tmp_path.glob("optimizer*")]
    assert kept == ["optimizer_000006.safetensors"]
    (tmp_path / kept[0]).unlink()
    with pytest.raises(DataError, match=r"optimizer_000006\.safetensors is not there"):
        run(tmp_path)


def test_subdivisions_are_normalized_as_ranks_are(tmp_path):
    divided = run(tmp_path / "a", SETTINGS.model_copy(update={"subdivisions": 2}))
    ranks = run(tmp_path / "b", SETTINGS.model_copy(update={"ranks": 2}))
    for (_, a), (_, b) in zip(divided, ranks, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


class Flat(Classifier):
    """Its loss does not depend on its weights, so that only decay and momentum move them."""

    name = "flat"

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 4)

    def settings(self):
        return {}

    def forward(self, values, _present):
        return self.layer(values[:, 0, 0, :2]) * 0


def test_sgd_is_darknets(tmp_path):
    settings = SETTINGS.model_copy(
        update={"optimizer": "sgd", "burn_in": 0, "steps": (3,), "weight_decay": 0.1}
    )
    settings = settings.model_copy(update={"checkpoint_every": 1, "iterations": 4})
    network, labelled = Flat(), make_labelled(20)
    begun = {name: value.clone() for name, value in network.state_dict().items()}
    draw = functools.partial(draw_batch, upload(labelled, "cpu"), 5)
    train_rank(lambda: network, draw, labelled.patterns[:2], judge, settings, 5, tmp_path)
    # Darknet: update = 0.9 update - decay * weight, weight += rate * update; a bias has no decay.
    weight, update = begun["layer.weight"].double(), 0
    for rate, path in zip((3e-3, 3e-3, 3e-4, 3e-4), list_checkpoints(tmp_path), strict=True):
        update = 0.9 * update - 0.1 * weight
        weight = weight + rate * update
        found = load_tensors(path)[0]
        np.testing.assert_allclose(found["layer.weight"], weight, rtol=1e-6)
        np.testing.assert_array_equal(found["layer.bias"], begun["layer.bias"])


def test_rate_of_sgd_rises_with_the_fourth_power_and_falls_tenfold():
    settings = SETTINGS.model_copy(
        update={"optimizer": "sgd", "burn_in": 1000, "steps": (4000, 5000)}
    )
    found = [rate_share(i, settings) for i in (500, 1000, 3999, 4000, 5000)]
    assert found == pytest.approx([1 / 16, 1, 1, 0.1, 0.01])


def test_the_gpu_is_told_to_compute_the_same_again_for_the_time_of_training(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    filled = torch.utils.deterministic
    with learning._reproducible("cuda"):
        assert torch.are_deterministic_algorithms_enabled()
        assert not filled.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert filled.fill_uninitialized_memory


def test_gradients_are_held_back_in_all_pieces_but_the_last(tmp_path):
    inside, seen = [], []

    @contextlib.contextmanager
    def hold(_trained):
        inside.append(True)
        yield
        inside.pop()

    team = Team(hold=hold, beat=lambda: seen.append(bool(inside)))
    run(tmp_path, SETTINGS.model_copy(update={"subdivisions": 4, "iterations": 2}), team=team)
    assert seen == [True, True, True, False] * 2
