# pyright: reportArgumentType=false
"""Data sets of torch and of Hugging Face as sources, and batches for a training loop of your own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.facts import refuses
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from resnetlab import Augmentation, Recipe, fit, load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.training.callbacks import CallbackState

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), dtype=np.uint8)
LABELS = [position % 4 for position in range(40)]


class Pictures(Dataset):
    """As torchvision's: Pillow images, integer labels, and the names of the classes."""

    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, form: str = "pillow") -> None:
        self.form = form

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, position: int) -> tuple[object, int]:
        pixels, label = PIXELS[position], LABELS[position]
        made = {
            "pillow": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "float": lambda: torch.from_numpy(pixels).permute(2, 0, 1) / 255,
            "normalized": lambda: torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1,
            "many sizes": lambda: Image.fromarray(pixels[: 8 + position % 3]),
            "text": lambda: "ant.png",
        }
        return made[self.form](), label


class Rows:
    """As those of Hugging Face: rows of named values, and features with the names of the classes."""

    features = {"img": None, "label": SimpleNamespace(names=["ant", "bee", "cat", "dog"])}  # noqa: RUF012

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, position: int) -> dict[str, object]:
        return {"img": Image.fromarray(PIXELS[position]), "label": LABELS[position], "id": position}


@pytest.mark.parametrize("form", ["pillow", "array", "tensor", "float"])
def test_a_map_style_dataset_is_a_source(form: str):
    data = load_data(Pictures(form), crop_mode="squash")
    expected = load_data((PIXELS, LABELS), crop_mode="squash", class_names=Pictures.classes)
    assert data.fingerprint == expected.fingerprint
    assert data.class_names == ("ant", "bee", "cat", "dog")


def test_subsets_tensors_and_splits_are_sources():
    data = load_data({"train": Subset(Pictures(), range(30)), "test": Subset(Pictures(), range(30, 40))})
    assert (len(data.split("train")) + len(data.split("validation")), len(data.split("test"))) == (30, 10)
    assert data.class_names == Pictures.classes
    tensors = load_data(TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)))
    assert tensors.class_names == ("0", "1", "2", "3")


def test_rows_of_hugging_face_are_a_source():
    assert load_data(Rows()).fingerprint == load_data(Pictures()).fingerprint
    both = load_data({"train": Rows(), "validation": Rows()})
    assert (set(both.splits), both.class_names) == ({"train", "validation"}, Pictures.classes)


def test_images_of_many_sizes_need_a_size():
    with refuses("different sizes", "image_size", "(8, 10)"):
        load_data(Pictures("many sizes"))
    assert load_data(Pictures("many sizes"), image_size=8).image_size == 8


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (Pictures("normalized"), ("item 0", "[0, 1]", "normalization")),
        (Pictures("text"), ("item 0", "1 or 3 channels")),
        (Subset(Pictures(), []), ("empty",)),
        (DataLoader(Pictures()), ("DataLoader", "(image, label)")),
        (3, ("got 3", "data set")),
    ],
)
def test_what_is_not_a_data_set_is_refused(source: object, facts: tuple[str, ...]):
    with refuses(*facts):
        load_data(source)


class Small(nn.Module):
    """A network of a user, with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.net(images).flatten(1))


def test_your_own_loop_has_the_losses_of_fit(tmp_path: Path):
    data = load_data("digits", limit=200, limit_held_out=40)
    recipe = Recipe(
        epochs=6, batch_size=20, lr=0.05, schedule="constant", momentum=0.9, nesterov=False, weight_decay=0.0,
        augment=Augmentation(crop_padding=0.125, rotation=10),
    )  # fmt: skip
    of_fit: list[float] = []
    torch.manual_seed(0)
    model = Small()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"seed": 5, "precision": "float32", "quiet": True}
    fit(model, data, recipe=recipe, out=tmp_path / "run", on_step=lambda state: of_fit.append(state.loss), **settings)

    own = Small()
    own.load_state_dict(start)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
    loader = data.loader("train", batch_size=20, augment=recipe.augment, seed=5)
    losses = []
    for _ in range(6):
        for images, labels in loader:
            loss = F.cross_entropy(own(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert (len(losses), len(loader), loader.epoch) == (60, 10, 6)
    assert losses == pytest.approx(of_fit, abs=1e-6)


def test_held_out_images_come_in_order(digits: ImageData):
    batches = list(digits.loader("test", batch_size=100))
    assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.split("test").labels)
    raw = torch.cat([images for images, _ in digits.loader("test", batch_size=100, normalize=False)])
    assert torch.equal(raw, digits.squares("test").float())
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images, digits.preprocessing.normalize(digits.squares("test"), torch.float32))
    with refuses("mixup"):
        digits.loader(augment=Augmentation(mixup=0.2, flip=False))
    with refuses("'train'", "augment"):
        digits.loader("test", augment=Augmentation())
    with refuses("'holdout'"):
        digits.loader("holdout")


def test_callbacks_end_and_slow_a_training_and_see_its_history(tmp_path: Path):
    data = load_data("digits", limit=60, limit_held_out=20)
    seen: list[CallbackState] = []

    def halve(state: CallbackState) -> None:
        seen.append(state)
        state.scale_lr(0.5)
        if state.epoch == 2:
            state.stop()

    settings = {"epochs": 4, "batch_size": 20, "lr": 0.1, "schedule": "constant", "quiet": True}
    run = fit("quick_resnet", data, out=tmp_path / "epochs", on_epoch=halve, **settings)
    assert run.history["lr"].tolist() == pytest.approx([0.1, 0.05])
    assert (run.settings["ended"], run.settings["ended_by"], run.is_complete) == (2, "callback", True)
    assert [len(state.history) for state in seen] == [1, 2]
    assert seen[0].loss == run.history["train_loss"][0]
    with pytest.raises(AttributeError):
        seen[0].lr = 1.0  # type: ignore[misc]
    with refuses("factor", "above 0"):
        seen[0].scale_lr(0)

    def stop(state: CallbackState) -> None:
        if (state.epoch, state.step) == (2, 2):
            state.stop()

    run = fit("quick_resnet", data, out=tmp_path / "steps", on_step=stop, **settings)
    assert run.history["step"].tolist() == [3, 5]
