"""Epochs that leave out a part of the images that are already learned."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import TINY
from tests.sampling import sampled
from tests.training.stepping import Step, around_steps, before_step, fail
from torch import Tensor

import resnetlab
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, batch_bounds
from resnetlab.data.storage.store import ImageData
from resnetlab.models.resnet import ResNet
from resnetlab.training import fit as fitting
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.selection import EASY, FULL_EPOCHS, Selection, images_of_epochs
from resnetlab.training.step import training_step

SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 0.05, "skip_easy": 0.4, "quiet": True}
"""More than 100 steps per epoch of digits."""
CPU = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=1)


def _with_losses(count: int, seed: int = 0) -> tuple[Selection, np.ndarray]:
    selection = Selection(count)
    losses = np.random.default_rng(seed).permutation(count).astype(np.float32)
    selection.record(np.arange(count), torch.from_numpy(losses))
    selection.end_epoch()
    return selection, losses


def test_only_images_with_low_losses_are_left_out_and_the_others_of_them_count_more():
    selection, losses = _with_losses(1000)
    weights = selection.weights(600, seed=0, epoch=3)
    assert weights is not None
    easy = losses < EASY * 1000
    assert (weights > 0).sum() == 600
    assert (weights[~easy] == 1).all()
    kept = weights[easy & (weights > 0)]
    assert len(kept) == 400
    np.testing.assert_allclose(kept, 800 / 400, rtol=1e-6)
    assert weights.sum() == pytest.approx(1000, rel=1e-6)


def test_over_many_epochs_every_image_counts_as_much():
    """The mean weight of an image, over what is drawn, is that of the others: the expected gradient is unbiased."""
    selection, _ = _with_losses(200)
    total = np.zeros(200)
    for epoch in range(4000):
        weights = selection.weights(120, seed=1, epoch=epoch)
        assert weights is not None
        total += weights
    deviation = 2 * np.sqrt(0.5 * 0.5 / 4000)  # of the mean of what is drawn
    np.testing.assert_allclose(total / 4000, 1, atol=5 * deviation)


def test_the_choice_depends_on_seed_and_epoch_alone():
    chosen = [
        np.asarray(_with_losses(100)[0].weights(60, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 2), (0, 2), (0, 3), (1, 2))
    ]
    assert np.array_equal(chosen[0], chosen[1])
    assert not any(np.array_equal(chosen[0], other) for other in chosen[2:])


def test_an_image_of_a_failed_step_is_not_taken_as_learned():
    selection, _ = _with_losses(100)
    selection.record(np.arange(20), torch.full((20,), torch.nan))
    selection.end_epoch()
    weights = selection.weights(40, seed=0, epoch=2)
    assert weights is not None
    assert (weights[:20] == 1).all()


@pytest.mark.parametrize(
    ("images", "starts", "expected"),
    [
        (1000, [0], [1000, 1000, 600, 600, 600, 600]),
        (1000, [0, 4], [1000, 1000, 600, 600, 1000, 1000]),
        (990, [0], [990] * 6),  # 99 steps
    ],
)
def test_the_first_epochs_and_short_ones_show_all_images(images: int, starts: list[int], expected: list[int]):
    recipe = Recipe(batch_size=10, skip_easy=0.4)
    assert images_of_epochs(recipe, images, 6, starts) == expected


def test_the_loss_of_a_step_is_weighted():
    """Against torch: the gradient of the mean of weights times losses."""
    torch.manual_seed(0)
    model = ResNet(dataclasses.replace(TINY, norm="none")).train()
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    weights = torch.tensor([0.0, 0.5, 2.0, 1.5, 1.0, 1.0])
    recorded: list[Tensor] = []
    logits = model(images)
    expected = (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights).mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    batch = Batch(0, images, labels, normalized=True, positions=np.arange(6), weights=weights)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss, correct = training_step(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        batch,
        preprocessing=resnetlab.load_data("digits", limit=20).preprocessing,
        recipe=Recipe(lr=1.0, weight_decay=0, accumulate=2, batch_size=6),
        machine=CPU,
        lr=1.0,
        record=recorded.append,
    )
    torch.testing.assert_close(loss, expected.detach())
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        recorded[0], torch.nn.functional.cross_entropy(logits, labels, reduction="none").detach()
    )
    assert correct.item() == pytest.approx(((logits.argmax(1) == labels) * weights).sum().item())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> tuple[Run, list[np.ndarray]]:
    """A training, and the positions of the images of each step."""
    shown: list[np.ndarray] = []

    def noted(step: Step, training: Training, batch: Batch) -> Tensor:
        shown.append(batch.positions)
        return step(training, batch)

    with around_steps(noted):
        run = fit(TINY, digits, out=tmp_path_factory.mktemp("whole") / "run", **SETTINGS)
    return run, shown


@pytest.mark.slow
def test_a_training_shows_fewer_images_after_the_first_epochs(whole: tuple[Run, list[np.ndarray]], digits: ImageData):
    run, shown = whole
    images = len(digits.splits["train"])
    fewer = images - int(0.4 * images)
    steps = [len(batch_bounds(images, 8))] * FULL_EPOCHS + [len(batch_bounds(fewer, 8))] * 2
    assert run.history["step"].tolist() == list(itertools.accumulate(steps))
    ends = run.history["step"].tolist()
    epochs = [np.concatenate(shown[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert [len(np.unique(epoch)) for epoch in epochs] == [images, images, fewer, fewer]
    assert not np.array_equal(np.sort(epochs[2]), np.sort(epochs[3]))
    # Loss and accuracy stay those of all images: those left out have the lowest losses.
    assert run.history["train_top1"].is_monotonic_increasing
    assert abs(run.history["train_top1"].iloc[-1] - run.history["val_top1"].iloc[-1]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("at", sampled([170, 330, 470, 400], 2))
def test_an_interrupted_training_ends_the_same(
    whole: tuple[Run, list[np.ndarray]], digits: ImageData, tmp_path: Path, at: int
):
    """The checkpoint is written within the epoch before the interruption, as SIGTERM does."""
    with pytest.raises(ConnectionError), before_step(at, lambda training: (training.save(), fail(training))):
        fit(TINY, digits, out=tmp_path / "run", **SETTINGS)
    run = resume(tmp_path / "run", quiet=True)
    ours, theirs = (resnetlab.load(found).state_dict() for found in (run, whole[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    histories = [found.history.drop(columns=list(TIMING_COLUMNS)) for found in (run, whole[0])]
    assert histories[0].equals(histories[1])


@pytest.mark.slow
def test_an_extension_begins_with_all_images(whole: tuple[Run, list[np.ndarray]], digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", **{**SETTINGS, "epochs": 3})
    extended = resume(run.path, epochs=6, quiet=True)
    images = len(digits.splits["train"])
    all_steps, fewer = (len(batch_bounds(count, 8)) for count in (images, images - int(0.4 * images)))
    steps = np.diff([0, *extended.history["step"]]).tolist()
    assert steps == [all_steps, all_steps, fewer, all_steps, all_steps, fewer]
    assert extended.history["lr"].iloc[-1] < 1e-3 * extended.history["lr"].max()


@pytest.mark.parametrize(
    "changes", [{"sampling": "balanced"}, {"augment": Augmentation(mixup=0.2)}, {"augment": Augmentation(cutmix=1.0)}]
)
def test_where_weights_would_be_wrong_all_images_are_shown(changes: dict[str, Any]):
    assert images_of_epochs(Recipe(batch_size=10, skip_easy=0.4, **changes), 1000, 4) == [1000] * 4


def test_last_bits_of_the_losses_change_few_choices():
    """The draw belongs to an image, whatever its rank is."""
    selection, losses = _with_losses(5000)
    before = selection.weights(3000, seed=0, epoch=2)
    selection.record(np.arange(5000), torch.from_numpy(losses * np.random.default_rng(1).normal(1, 1e-3, 5000)))
    selection.end_epoch()
    after = selection.weights(3000, seed=0, epoch=2)
    assert before is not None and after is not None
    assert ((before > 0) != (after > 0)).sum() < 20


@pytest.mark.slow
def test_callbacks_get_losses_of_one_scale(digits: ImageData, tmp_path: Path):
    """Those of the steps, on average, are that of the epoch, also if images are left out."""
    losses: dict[int, list[float]] = {}
    run = fit(
        TINY, digits, out=tmp_path / "run", on_step=lambda state: losses.setdefault(state.epoch, []).append(state.loss),
        **SETTINGS,
    )  # fmt: skip
    for epoch, expected in zip(run.history["epoch"], run.history["train_loss"], strict=True):
        assert np.mean(losses[epoch]) == pytest.approx(expected, rel=0.05)


def test_a_budget_counts_the_epochs_of_all_images(monkeypatch: pytest.MonkeyPatch):
    """With 10 s for an epoch of all images and 6 s for others."""
    seconds = {0.0: 10.0, 0.4: 6.0}
    monkeypatch.setattr(fitting, "_epoch_seconds", lambda start, world_size, skip_easy=0.0: seconds[skip_easy])
    for skip_easy, budget, epochs in ((0.4, 19, 1), (0.4, 20, 2), (0.4, 25, 2), (0.4, 32, 4), (0.0, 32, 3)):
        start = SimpleNamespace(recipe=Recipe(skip_easy=skip_easy))
        assert fitting._epochs_within(start, budget / 60, 1) == epochs  # type: ignore[arg-type]
