"""The estimate of a training's time counts every step and validation, and changes nothing."""

import copy

import pytest
import torch
from torch import nn

import resnetlab
from resnetlab.core.framing import Framing
from resnetlab.models.architectures import as_network, with_sizes
from resnetlab.training.estimate import Estimate, Speed, estimate_training, measure_speed
from resnetlab.training.logs import TrainingDisplay
from resnetlab.training.machine import Machine

MACHINE = Machine(device="cpu", precision="float32", memory_format="channels_last", threads=torch.get_num_threads())
FRAMING = Framing(image_size=32, channels=3)
SPEED = Speed(step=100.0, image=3.0, head_image=1.0, evaluated=0.5)


def network():
    return resnetlab.create_model("resnet20", num_classes=4)


def recipe(**changes):
    return resnetlab.Recipe(**{"epochs": 4, "batch_size": 100, **changes}).changed(**{"augment.flip": True})


def seconds(recipe, **counts):
    found = estimate_training(network(), recipe, MACHINE, FRAMING, measure=lambda *_, **__: SPEED, **counts)
    assert found.macs == resnetlab.summarize(network(), (3, 32, 32)).macs
    return found.seconds


def test_every_step_image_and_validation_counts():
    # Four epochs of ten steps; four validations of 200 images and the final evaluation of 600.
    counts = {"images": 1_000, "validated": 200, "evaluated": 600}
    assert seconds(recipe(), **counts) == 4 * (10 * 100 + 1_000 * 3) + (4 * 200 + 600) * 0.5
    assert seconds(recipe(validate_every=3), **counts) == 4 * (10 * 100 + 1_000 * 3) + (2 * 200 + 600) * 0.5
    assert seconds(recipe(), **counts, world_size=2) == 4 * (10 * 100 + 500 * 3) + (4 * 100 + 300) * 0.5


def test_smaller_images_and_epochs_of_the_head_take_less():
    counts = {"images": 1_000, "validated": 0}
    assert seconds(recipe(start_size=0.5), **counts) == 4 * 1_000 + 1_000 * 3 * (0.25 + 0.75**2 + 1 + 1)
    assert seconds(recipe(unfreeze=3), **counts) == 4 * 1_000 + 1_000 * (1 + 1 + 1 + 3)
    # resnet20 has a stem and three stages, which are unfrozen one per epoch.
    gradual = seconds(recipe(epochs=6, unfreeze=(1, 1)), **counts)
    assert gradual == 6 * 1_000 + 1_000 * (1 + 1.5 + 2 + 2.5 + 3 + 3)


def test_a_training_that_is_short_on_any_machine_is_not_measured():
    def measure(*_, **__):
        raise AssertionError("measured")

    found = estimate_training(network(), recipe(epochs=1), MACHINE, FRAMING, images=100, validated=10, measure=measure)
    assert found.seconds is None
    assert "less than a minute" in str(found)


def test_measuring_changes_neither_the_network_nor_random_numbers():
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    speed = measure_speed(model, recipe(optimizer="muon", average=0.9, unfreeze=1), MACHINE, FRAMING, macs=10**10)
    assert speed.step > 0
    assert 0 < speed.head_image < speed.image
    assert 0 < speed.evaluated < speed.image
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class Unpredictable(nn.Module):
    """Its forward pass depends on the pixels, so that it cannot be traced by shapes alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, images):
        return self.linear(images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3)))


def test_a_network_that_cannot_be_traced_is_measured():
    model = as_network(Unpredictable())
    model.config = with_sizes(model.config, in_channels=3, num_classes=4)
    found = estimate_training(model, recipe(), MACHINE, FRAMING, images=1_000, validated=100)
    assert found.macs is None
    assert found.seconds is not None and found.seconds > 0


@pytest.mark.parametrize(("macs", "words"), [(41_200_000, "41.2 million"), (1_813_561_344, "1.81 billion")])
def test_the_line_has_operations_epochs_and_time(macs, words):
    line = str(Estimate(macs=macs, seconds=720.0, epochs=10))
    assert words in line
    assert "12 min" in line
    assert "10 epochs" in line


def test_the_line_comes_before_the_first_epoch(digits, tmp_path, capfd):
    resnetlab.fit("quick_resnet", digits, out=tmp_path / "run", epochs=1, overrides={"depths": (1,), "widths": (8,)})
    lines = capfd.readouterr().err.splitlines()
    place = next(number for number, line in enumerate(lines) if "MACs per image" in line)
    assert not any("top-1" in line for line in lines[:place])


def test_the_time_left_learns_what_a_step_of_each_size_takes(capfd):
    now, cost = 0.0, {16: 2.0, 32: 2.6}  # most of a step does not depend on the image size
    sizes, row = [16, 16, 32, 32, 48], {"val_loss": 1.0, "val_top1": 0.5, "seconds": 1.0, "images_per_second": 1.0}
    display = TrainingDisplay(sizes=sizes, steps=[10] * 5, done=0, quiet=False, clock=lambda: now)
    for epoch in range(1, 4):
        for _ in range(10):
            now += cost[sizes[epoch - 1]]
            display.step(epoch, loss=1.0, images_per_second=1.0)
        display.epoch({"epoch": epoch, "train_loss": 1.0, "train_top1": 0.5, **row})
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("epoch")]
    first = 10 * (2 + 2 * (2 + 3 * 1.0) + (2 + 8 * 1.0))  # half of 2 s is taken to grow with the pixels
    fitted = 10 * (2.6 + 2.6 + 5 / 3 * 0.6)  # 48 x 48 pixels are as far from 32 x 32 as 5/3 of the step from 16 x 16
    assert [line.split()[-2:] for line in lines] == [[f"{first / 60:.0f}", "min"], ["3", "min"], [f"{fitted:.0f}", "s"]]
