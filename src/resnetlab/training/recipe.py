"""A recipe: everything that decides a training, apart from network, data and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, from_mapping, set_checked
from resnetlab.core.errors import UserError
from resnetlab.data.augment import Augmentation

OPTIMIZERS = ("sgd", "adamw", "muon", "scratch_sgd")
LOSSES = ("cross_entropy", "scratch_cross_entropy")
SCHEDULES = ("one_cycle", "cosine", "milestones", "every", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        name: what it is called in the run folder.
        networks: what `model="auto"` takes: a name of the catalog for images of up to 64 pixels, and one above.
        epochs: passes over the training images.
        batch_size: images of one step, over all processes.
        epoch_steps: fewest whole batches of an epoch. Of so few images that there would be less, `batch_size` is halved
            until there are as many, but not below 64. 0 takes it as it is, as does whoever gives a batch size.
        scale_lr: whether the learning rates are then divided by the root of 2 for each halving.
        accumulate: parts that a step's images are taken in, one after the other, where they do not fit into
            memory together. Normalization sees a part at a time.
        sync_norm: batch normalization takes mean and variance over the images of all processes, not of each alone.
        lr: the highest learning rate; of the head and of every part of the network that has none of its own.
        schedule: how the learning rate moves, see `schedule.learning_rate`: "one_cycle", "cosine", "milestones",
            "every" or "constant".
        warmup: share of all steps in which the learning rate rises, where the schedule has such.
        milestones: shares of all steps at which "milestones" multiplies the learning rate by `decay`.
        decay_epochs: epochs after which "every" multiplies it, again and again.
        decay: what the learning rate is multiplied by there.
        layer_decay: ratio of the learning rate of each part of the network ("stem", "stage1", ..., "head") to that of
            the part after it, under every schedule.
        rates: instead of it, learning rates by part, reached where the others reach `lr`.
        freeze: parts that are not trained: neither their weights nor their running statistics change.
        head_epochs: so many epochs at first train the head alone.
        unfreeze_epochs: after them one part more is trained every so many epochs, from the last stage to the stem
            (gradual unfreezing, Howard and Ruder 2018); with 0 all are at once. What is frozen is passed over. The
            schedule goes on meanwhile.
        optimizer: "sgd", torch's stochastic gradient descent; "adamw" (Loshchilov and Hutter 2019), whose first
            beta is `momentum`; "muon", see `resnetlab.training.optimizers` (Jordan et al. 2024); or "scratch_sgd", that
            of `resnetlab.scratch`.
        momentum: of stochastic gradient descent and Muon.
        nesterov: whether momentum looks ahead (Sutskever et al. 2013).
        weight_decay: on weights of convolutions and linear layers; of "adamw" and "muon" it is apart from the
            gradient, so that it is usually larger.
        decay_all: weight decay on scales, shifts and biases too, as the first papers have it.
        clip_norm: longest gradient, over all parameters together, that is taken as it is; a longer one is
            scaled down to it (Pascanu et al. 2013). 0 leaves every gradient as it is.
        loss: "cross_entropy", torch's, or "scratch_cross_entropy", that of `resnetlab.scratch`.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        class_weights: "none", or "balanced": a sample counts inversely to how many its class has, 1 on average.
        augment: what happens to the training images.
        start_size: height and width of the images in the first epoch, as a share of the final ones. They grow
            evenly (progressive resizing, Howard 2018).
        grow_until: share of the epochs after which they have their final size.
        average: decay a step of the moving average of the weights, which is what is validated and kept
            (Polyak and Juditsky 1992); early on it forgets faster. 0 averages nothing.
        validate_every: epochs between measurements of the validation split; the last epoch always has one.
        keep: the weights that the run ends with: "final", or those of the "best" validation top-1.
        patience: epochs without a better validation top-1 after which training ends, at least as many as
            `validate_every`; 0 never does.

    Raises:
        UserError: a value is out of range.
    """

    name: str = "custom"
    networks: tuple[str, str] = ("resnet20", "resnet18")
    epochs: int = 20
    batch_size: int = 128
    epoch_steps: int = 0
    scale_lr: bool = False
    accumulate: int = 1
    sync_norm: bool = False
    lr: float = 0.1
    schedule: str = "one_cycle"
    warmup: float = 0.25
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay_epochs: int = 30
    decay: float = 0.1
    layer_decay: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict, hash=False)
    freeze: tuple[str, ...] = ()
    head_epochs: int = 0
    unfreeze_epochs: int = 0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    clip_norm: float = 0.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: str = "none"
    augment: Augmentation = field(default_factory=Augmentation)
    start_size: float = 1.0
    grow_until: float = 0.5
    average: float = 0.0
    validate_every: int = 1
    keep: str = "final"
    patience: int = 0

    def __post_init__(self) -> None:
        set_checked(
            self,
            networks=_networks(self.networks),
            epochs=check_integer("epochs", self.epochs, 1),
            batch_size=check_integer("batch_size", self.batch_size, 2),
            epoch_steps=check_integer("epoch_steps", self.epoch_steps, 0),
            scale_lr=check_flag("scale_lr", self.scale_lr),
            accumulate=check_integer("accumulate", self.accumulate, 1),
            sync_norm=check_flag("sync_norm", self.sync_norm),
            lr=check_number("lr", self.lr, 0, above=True),
            schedule=check_choice("schedule", self.schedule, SCHEDULES),
            warmup=check_number("warmup", self.warmup, 0, 1),
            milestones=_shares("milestones", self.milestones),
            decay_epochs=check_integer("decay_epochs", self.decay_epochs, 1),
            decay=check_number("decay", self.decay, 0, 1, above=True),
            layer_decay=check_number("layer_decay", self.layer_decay, 0, 1, above=True),
            rates=_rates(self.rates, self.layer_decay),
            freeze=_parts(self.freeze),
            head_epochs=check_integer("head_epochs", self.head_epochs, 0),
            unfreeze_epochs=check_integer("unfreeze_epochs", self.unfreeze_epochs, 0),
            optimizer=check_choice("optimizer", self.optimizer, OPTIMIZERS),
            loss=check_choice("loss", self.loss, LOSSES),
            momentum=check_number("momentum", self.momentum, 0, 1, below=True),
            nesterov=check_flag("nesterov", self.nesterov),
            weight_decay=check_number("weight_decay", self.weight_decay, 0),
            decay_all=check_flag("decay_all", self.decay_all),
            clip_norm=check_number("clip_norm", self.clip_norm, 0),
            label_smoothing=check_number("label_smoothing", self.label_smoothing, 0, 1, below=True),
            class_weights=check_choice("class_weights", self.class_weights, ("none", "balanced")),
            start_size=check_number("start_size", self.start_size, 0, 1, above=True),
            grow_until=check_number("grow_until", self.grow_until, 0, 1),
            average=check_number("average", self.average, 0, 1, below=True),
            validate_every=check_integer("validate_every", self.validate_every, 1),
            keep=check_choice("keep", self.keep, ("final", "best")),
            patience=check_integer("patience", self.patience, 0),
        )
        if isinstance(self.augment, Mapping):
            set_checked(self, augment=from_mapping(Augmentation, self.augment, "augment"))
        if not isinstance(self.augment, Augmentation):
            raise UserError(f"augment must be an Augmentation, got {self.augment!r}.")
        if self.nesterov and self.momentum == 0 and self.optimizer != "adamw":
            raise UserError("nesterov=True needs momentum above 0. Set nesterov=False, or give a momentum.")
        if 0 < self.patience < self.validate_every:
            raise UserError(
                f"patience={self.patience} would end every training before its first validation, after "
                f"validate_every={self.validate_every} epochs. Have patience for as many "
                "epochs at least, or validate more often."
            )
        if self.batch_size < 2 * self.accumulate:
            raise UserError(
                f"batch_size={self.batch_size} leaves less than two images for each of accumulate={self.accumulate} "
                "parts. Take fewer parts, or a larger batch."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, nested, ready for a file; what is None is left out."""
        values = dataclasses.asdict(self)
        values["augment"] = {key: value for key, value in values["augment"].items() if value is not None}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe of what `to_dict` gave; unknown keys are errors with the nearest known one."""
        return from_mapping(cls, values, "the recipe")

    def changed(self, /, **changes: Any) -> Recipe:
        """Returns the recipe with other values; "augment.flip", "rates.head" and the like name nested fields.

        Raises:
            UserError: there is no such field, with the nearest known one, or a value is out of range.
        """
        values = self.to_dict()
        for key, value in changes.items():
            outer, dot, inner = key.partition(".")
            if dot and isinstance(values.get(outer), dict):
                values[outer] = {**values[outer], inner: value}
            else:
                values[key] = value
        return Recipe.from_dict(values)


def _shares(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{name} must be a list, such as [0.5, 0.75], got {values!r}.")
    return tuple(check_number(name, value, 0, 1) for value in values)


def _networks(names: Any) -> tuple[str, str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or [type(name) for name in names] != [str, str]:
        raise UserError(f"networks must be two names, for small and for large images, got {names!r}.")
    return names[0], names[1]


def _rates(rates: Any, layer_decay: float) -> dict[str, float]:
    if not isinstance(rates, Mapping):
        raise UserError(f"rates must be learning rates by part, such as {{'stem': 0.001}}, got {rates!r}.")
    if rates and layer_decay != 1:
        raise UserError(
            f"rates and layer_decay={layer_decay:g} both set the learning rates of the parts. Leave rates out, or set "
            "layer_decay=1."
        )
    return {name: check_number(f"rates.{name}", rate, 0, above=True) for name, rate in rates.items()}


def _parts(names: Any) -> tuple[str, ...]:
    """Returns names of parts; as text they are separated by commas."""
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"freeze must be names of parts, such as stem,stage1, got {names!r}.")
    return tuple(name.strip() for name in names if name.strip())
