"""The named recipes. Their docstrings state command, machine, time and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.registry import read_call
from resnetlab.data.augment import Augmentation
from resnetlab.training.losses import LOSSES, smooths
from resnetlab.training.recipe import LAYER_DECAY, Recipe
from resnetlab.training.update_rules import OPTIMIZERS, takes_weight_decay

_UNCHANGED = Augmentation(crop_padding=0.0, flip=False)


def quick() -> Recipe:
    """A good network in minutes: Muon (Jordan et al. 2024) with one cycle (Smith and Topin 2018).

    Images grow during training, weights are averaged and labels smoothed. If an epoch would have fewer than 50 steps,
    batches and learning rate are smaller; `--batch-size` and `--lr` are never changed. With at least 100 steps per
    epoch, all but the first two epochs leave out 40 % of the images, drawn from the 80 % with the lowest losses.

    Measured on two cores, torch 2.15, accuracy on the test split:

    - `resnetlab train fashion_mnist --recipe quick`: quick_resnet, 150 s from start to end, 93.5 % (medians of three
      seeds, AMD EPYC without AMX, 2026-11-30).
    - `resnetlab train digits --recipe quick --model resnet20 --epochs 60 --batch-size 64`: 68 s of training, 99.2 %
      (seed 0, Intel Xeon with AMX).
    """
    return Recipe(
        name="quick",
        networks=("quick_resnet", "resnet18"),
        epochs=8,
        batch_size=256,
        epoch_steps=50,
        scale_lr=True,
        optimizer="muon",
        lr=0.2,
        weight_decay=0.01,
        clip_norm=1.0,
        label_smoothing=0.1,
        augment=Augmentation(crop_padding=0.07),
        start_size=0.6,
        grow_until=0.7,
        skip_easy=0.4,
        average=0.996,
    )


def best() -> Recipe:
    """The highest accuracy within about an hour: a wider network, three times the epochs of `quick`, random erasing.

    Measured on two cores of an Intel Xeon with AMX, torch 2.15, accuracy on the test split:

    - `resnetlab train fashion_mnist --recipe best`: best_resnet, 57 minutes from start to end on a machine with other
      work, 95.4 % (seed 0); 47 minutes and 95.5 % with `--set augment.flip=true`.
    """
    return quick().changed(
        name="best",
        networks=("best_resnet", "resnet18d"),
        epochs=24,
        augment=Augmentation(crop_padding=0.07, erase_p=0.5, erase_fill=127),
        start_size=0.65,
        skip_easy=0.0,
        average=0.998,
    )


def photos() -> Recipe:
    """A classifier of a few hundred or thousand photos from scratch, in about two minutes on two cores.

    `resnetlab train photos/ --recipe photos`, the default for a folder or a table of photos.

    The number of training photos decides about the epochs (see the table), unless you set them. As in `quick`, but with
    small batches, since there are few, and with strong augmentation (TrivialAugment, random crops), since a network
    sees each of them many times. A small network with wide layers was best for equal time (docs/training.md).
    """
    return quick().changed(
        name="photos",
        networks=("quick_resnet", "photo_resnet"),
        epochs=20,
        batch_size=64,
        epoch_steps=0,
        scale_lr=False,
        augment=Augmentation(crop_scale=(0.35, 1.0), policy="trivial"),
        start_size=0.65,
        skip_easy=0.0,
    )


def finetune() -> Recipe:
    """Fine-tuning on few images: first only the head, then all layers, with smaller learning rates for earlier ones.

    `resnetlab train photos/ --pretrained runs/many-photos --recipe finetune`

    The first epoch trains only the head, so that its random gradients do not disturb the pretrained weights. After
    that, each section has 0.7 times the learning rate of the next one, because earlier layers are more general and need
    less change (Howard and Ruder 2018). A lower learning rate than in `quick` and a moving average keep the
    weights near the pretrained ones. `--freeze stem,stage1,stage2` does not train the first sections, which also saves
    time; `--set unfreeze=[1,1]` unfreezes one section per epoch.

    Measured on two cores of an Intel Xeon with `--epochs 60 --batch-size 20`, on 20 images of each of five classes of
    Imagenette at 96 pixels, with a ResNet-18 pretrained on the other five: 67.0 % in 2 to 3 minutes, 68.4 % with
    `--layer-decay 1 --set unfreeze=0`, 57.3 % from scratch (means of three seeds; benchmarks/transfer.py).
    """
    return Recipe(
        name="finetune",
        networks=("resnet18", "resnet18"),
        epochs=10,
        batch_size=32,
        lr=0.05,
        rates={"layer_decay": 0.7},
        unfreeze=1,
        weight_decay=1e-4,
        clip_norm=1.0,
        label_smoothing=0.1,
        augment=Augmentation(crop_scale=(0.5, 1.0)),
        average=0.99,
    )


def paper_cifar() -> Recipe:
    """The training of He et al. 2016 on CIFAR: 64,000 steps of 128 images, learning rate / 10 at 32,000 and 48,000.

    `resnetlab train cifar10 --model resnet20 --recipe paper-cifar --set model.shortcut=A`

    182 epochs of the 45,000 training images that the validation split leaves are 64,064 steps. Weight decay of 1e-4
    applies to all parameters; images are padded by 4 pixels, cropped and flipped. Published test errors: resnet20
    8.75 %, resnet32 7.51 %, resnet44 7.17 %, resnet56 6.97 %, resnet110 6.43 %. Two differences from the paper: images
    are normalized by mean and deviation per channel instead of the mean per pixel, and there is no slow start for 110
    layers (add `--set warmup=0.01`). We have not run all of it: on two cores of an Intel Xeon, resnet20 takes about
    1.5 minutes per epoch, 5 hours in all.
    """
    return Recipe(
        name="paper-cifar",
        epochs=182,
        batch_size=128,
        lr=0.1,
        schedule="steps(0.5, 0.75, factor=0.1)",
        nesterov=False,
        weight_decay=1e-4,
        decay_all=True,
        augment=Augmentation(crop_padding=0.125, flip=True),
    )


def from_scratch() -> Recipe:
    """The from-scratch notebook: plain SGD at a constant learning rate, with loss and optimizer from scratch.

    `resnetlab train fashion_mnist --recipe from-scratch`

    Images have 96 pixels and values from 0 to 1.

    One of its 10 epochs (`--epochs 1 --set normalize=data`) reaches 62.9 % test accuracy (61.9 to 63.8; one seed) in 39
    minutes on one of two cores of an Intel Xeon, the other busy, with bfloat16. We have not run all ten, which take
    six and a half hours. With batches of 32 and a learning rate of 0.025, one pass over 12,000 images reaches 80.6
    %.
    """
    networks = ("scratch_resnet50", "scratch_resnet50")
    scratch = {"optimizer": "scratch_sgd", "loss": "scratch_cross_entropy"}
    return d2l_pytorch().changed(name="from-scratch", networks=networks, **scratch)


def d2l_pytorch() -> Recipe:
    """ResNet-18 of d2l in PyTorch: plain SGD at a constant learning rate.

    `resnetlab train fashion_mnist --recipe d2l-pytorch`

    Images have 96 pixels and values from 0 to 1. Published outputs show 92.1 to 92.4 % test accuracy after 10 epochs.
    Here, with `--set normalize=data`, they reach 91.45 % (90.9 to 92.0; one seed) in 57 minutes on one of two cores of
    an Intel Xeon, the other busy, with bfloat16.
    """
    return Recipe(
        name="d2l-pytorch",
        networks=("d2l_resnet18", "d2l_resnet18"),
        epochs=10,
        batch_size=128,
        lr=0.01,
        schedule="constant",
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        framing={"image_size": 96},
        normalize="none",
        augment=_UNCHANGED,
    )


def imagenette_tutorial() -> Recipe:
    """The Imagenette tutorial: learning rate halved every 3 epochs, strong augmentation, best weights, patience 5.

    `resnetlab train imagenette --recipe imagenette-tutorial --seed 42`

    Photos are squashed to 224x224 pixels and normalized with ImageNet's mean and standard deviation.

    With `--set normalize=data`, its 10 epochs reach 73.2 % of Imagenette's 3,925 validation photos (71.8 to 74.6; the
    best of ten validations) in 78 minutes on one of two cores of an Intel Xeon, the other busy, with bfloat16.
    """
    return Recipe(
        name="imagenette-tutorial",
        networks=("resnet18", "resnet18"),
        epochs=10,
        batch_size=256,
        lr=0.01,
        schedule="every(3, factor=0.5)",
        nesterov=False,
        weight_decay=1e-3,
        decay_all=True,
        framing={"image_size": 224, "crop_mode": "squash"},
        normalize="imagenet",
        augment=Augmentation(
            crop_scale=(0.75, 1.0), crop_ratio=(0.9, 1.05), flip=True, rotation=10, perspective=0.15, perspective_p=0.3,
            brightness=0.15, contrast=0.15, saturation=0.1, hue=0.05, autocontrast_p=0.2, blur_p=0.3, blur_kernel=3,
            blur_sigma=(0.1, 1.0), sharpness=1.5, sharpness_p=0.3, erase_p=0.1, erase_area=(0.02, 0.08),
            erase_ratio=(0.3, 3.3),
        ),
        keep="best",
        patience=5,
    )  # fmt: skip


def d2l_gluon() -> Recipe:
    """ResNet-18 of d2l in Gluon: plain SGD at a constant learning rate, larger batches.

    `resnetlab train fashion_mnist --recipe d2l-gluon`

    Images have 96 pixels and values from 0 to 1.

    The source reports about 8 minutes on a Colab GPU. Here, with `--set normalize=data`, 10 epochs reach 91.93 % of the
    test images (91.4 to 92.4; one seed), in 62 minutes on one of two cores of an Intel Xeon, the other busy, with
    bfloat16.
    """
    return d2l_pytorch().changed(name="d2l-gluon", batch_size=256, lr=0.05)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "quick": quick,
    "best": best,
    "photos": photos,
    "finetune": finetune,
    "paper-cifar": paper_cifar,
    "from-scratch": from_scratch,
    "d2l-pytorch": d2l_pytorch,
    "imagenette-tutorial": imagenette_tutorial,
    "d2l-gluon": d2l_gluon,
}


_ABOUT_EQUAL = {
    "sgd": (0.2, 5e-4),
    "scratch_sgd": (0.2, 5e-4),
    "muon": (0.2, 0.01),
    "adamw": (1e-3, 0.05),
    **dict.fromkeys(("adam", "adamax", "nadam", "radam", "rmsprop"), (1e-3, 1e-4)),
}
"""Learning rates and weight decays with about the same effect, by optimizer; the last line is not measured."""


def resolve_recipe(recipe: str | Recipe, /, **changes: Any) -> Recipe:
    """Returns the recipe with this name, or the given recipe, with the changes applied; "auto" is `quick`.

    A batch size that you set is used for any number of images, and learning rates for any batch size. If you change
    only the optimizer, the recipe's learning rates and weight decay are converted to its scale, if that is known.

    Raises:
        UserError: the recipe or a field is unknown, or a value is out of range.
    """
    if recipe == "auto":
        recipe = "quick"
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise unknown("recipe", recipe, RECIPES, listed_by="resnetlab list recipes")
        recipe = RECIPES[recipe]()
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe must be a name or a Recipe, got {brief(recipe)}. Names: {', '.join(RECIPES)}.")
    if _sets_learning_rates(changes):
        changes = {"scale_lr": False, **changes}
    if "batch_size" in changes:
        changes = {"epoch_steps": 0, **changes}
    changes = _suited(changes)
    names = [read_call(name).name for name in (changes.get("optimizer", recipe.optimizer), recipe.optimizer)]
    if "optimizer" in changes and _ABOUT_EQUAL.keys() >= set(names):
        now, before = (_ABOUT_EQUAL[name] for name in names)
        lr, weight_decay = (new / old for new, old in zip(now, before, strict=True))
        recipe = recipe.with_scaled_rates(lr).changed(weight_decay=weight_decay * recipe.weight_decay)
    return recipe.changed(**changes)


def _suited(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns changes with names of loss and optimizer, and without what these do not take, unless it is set."""
    changes = dict(changes)
    if "loss" in changes:
        changes["loss"] = LOSSES.check("loss", changes["loss"])
        if not smooths(changes["loss"]):
            changes = {"label_smoothing": 0.0, **changes}
    if "optimizer" in changes:
        changes["optimizer"] = OPTIMIZERS.check("optimizer", changes["optimizer"])
        if not takes_weight_decay(changes["optimizer"]):
            changes = {"weight_decay": 0.0, **changes}
    return changes


def _sets_learning_rates(changes: Mapping[str, Any]) -> bool:
    """Whether changes set `lr` or the rate of a section; freezing and `layer_decay` keep the scale of the rates."""
    rates = dict(changes["rates"]) if isinstance(changes.get("rates"), Mapping) else {}
    rates |= {key.removeprefix("rates."): rate for key, rate in changes.items() if key.startswith("rates.")}
    return "lr" in changes or any(rate for name, rate in rates.items() if name != LAYER_DECAY)
