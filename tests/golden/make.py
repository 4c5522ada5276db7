"""Writes the golden losses again: `python tests/golden/make.py`.

Run it only if a change of behavior is intended, and say so in the commit: equal losses prove that a refactoring changed
nothing. The golden run, which proves that stored runs still load, is written only if its folder does not exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOSSES = HERE / "first_20_losses.json"


def first_losses(count: int = 20) -> list[float]:
    """Returns the losses of the first steps of a training on digits, in float64."""
    import torch

    from resnetlab.core.randomness import torch_seeded
    from resnetlab.data.augment import Augmentation
    from resnetlab.data.batches import training_batches
    from resnetlab.data.load import load_data
    from resnetlab.training.machine import Machine
    from resnetlab.training.optimizers import build_optimizer
    from resnetlab.training.recipe import Recipe
    from resnetlab.training.step import training_step
    from resnetlab.weights.load import create_model

    data = load_data("digits")
    augment = Augmentation(crop_padding=0.125, flip=False)
    recipe = Recipe(epochs=1, batch_size=32, lr=0.1, clip_norm=1.0, label_smoothing=0.1, augment=augment)
    machine = Machine(device="cpu", precision="float64", memory_format="contiguous", threads=torch.get_num_threads())
    with torch_seeded(0, "initial weights"):
        model = create_model("resnet20", in_channels=1)
    machine.place(model).train()
    optimizer = build_optimizer(model, recipe)
    losses = []
    split = data.splits["train"]
    for batch in training_batches(split, batch_size=32, policy=recipe.augment, seed=0, epoch=0):
        lr = recipe.learning_rate(batch.step, 41)
        settings = {"preprocessing": data.preprocessing, "recipe": recipe, "machine": machine, "lr": lr}
        losses.append(training_step(model, optimizer, batch, **settings)[0].item())
        if len(losses) == count:
            break
    return losses


def make_run(folder: Path) -> None:
    """Trains the golden run: a tiny network for two epochs."""
    from resnetlab.models.config import ResNetConfig
    from resnetlab.training.fit import fit

    tiny = ResNetConfig(depths=(1,), widths=(4,), stem="cifar", in_channels=1, num_classes=10)
    run = fit(tiny, "digits", out=folder, epochs=2, precision="float32", quiet=True)
    for table in run.evaluation().glob("*.parquet"):
        table.unlink()


if __name__ == "__main__":
    LOSSES.write_text(json.dumps(first_losses(), indent=1) + "\n")
    if not (HERE / "run").exists():
        make_run(HERE / "run")
    sys.stdout.write(f"wrote {LOSSES}\n")
