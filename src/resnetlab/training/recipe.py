"""A recipe: everything that decides a training, except network, data and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from resnetlab.core.checks import MOST_EPOCHS, check_choice, check_number, from_mapping
from resnetlab.core.errors import UserError, brief
from resnetlab.core.fields import Checked, documented, is_sequence, setting
from resnetlab.core.foreign import TRAINING
from resnetlab.core.framing import FramingOptions
from resnetlab.data.augment import Augmentation
from resnetlab.training.losses import LOSSES, smooths
from resnetlab.training.schedule import EXAMPLES, check_schedule, read_schedule
from resnetlab.training.update_rules import OPTIMIZERS, takes_weight_decay

LAYER_DECAY = "layer_decay"
"""The entry of `rates` that is a ratio, not a section."""
_SIZE_STEP = 4
"""Image sizes are multiples of this, so that they can be halved twice."""
_SMALLEST_SIZE = 16
"""Smaller images show too little of what the final ones show."""


def _check_rates(name: str, rates: Any) -> dict[str, float]:
    if not isinstance(rates, Mapping):
        raise UserError(f"{name} must be learning rates by section, such as {{'stem': 0.001}}, got {brief(rates)}.")
    return {
        section: check_number(f"{name}.{section}", rate, 0, 1, above=True)
        if section == LAYER_DECAY
        else check_number(f"{name}.{section}", rate, 0)
        for section, rate in rates.items()
    }


def _check_class_weights(name: str, value: Any) -> str | tuple[float, ...] | dict[str, float]:
    if isinstance(value, Mapping):
        return {str(key): check_number(f"{name}.{key}", weight, 0) for key, weight in value.items()}
    if is_sequence(value) and value:
        return tuple(check_number(f"every entry of {name}", weight, 0) for weight in value)
    if not isinstance(value, str):
        raise UserError(
            f"{name} must be 'none', 'balanced', one weight per class such as [1, 2.5], or weights by class name, got "
            f"{brief(value)}."
        )
    return check_choice(name, value, ("none", "balanced"))


def _check_framing(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{name} must be options of load_data, such as {{'image_size': 96}}, got {brief(values)}.")
    from_mapping(FramingOptions, values, name)
    return dict(values)


@documented
@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """How to train a network.

    Raises:
        UserError: a value is out of range, or values contradict each other.
    """

    KIND: ClassVar[str] = TRAINING

    name: str = setting("custom", "the name that the run folder records")
    networks: tuple[str, str] = setting(
        ("resnet20", "resnet18"),
        'names of the networks that `model="auto"` chooses: the first for images of up to 64 pixels, the second for '
        "larger images",
    )
    epochs: int = setting(20, "passes over the training images", minimum=1, maximum=MOST_EPOCHS)
    batch_size: int = setting(128, "images per step, over all processes", minimum=2)
    epoch_steps: int = setting(
        0,
        "the minimum number of steps of an epoch that shows all images. If it has fewer steps, `batch_size` is halved "
        "until the epoch has enough, but not below 64. If this is 0, or if you set a batch size yourself, `batch_size` "
        "does not change",
        minimum=0,
    )
    scale_lr: bool = setting(
        False, "whether `epoch_steps` also divides the learning rates by sqrt(2) each time it halves `batch_size`"
    )
    accumulate: int = setting(
        1,
        "micro-batches per step, processed one after the other to save memory. Batch normalization uses the "
        "statistics of each micro-batch alone",
        minimum=1,
    )
    sync_norm: bool = setting(
        False, "whether batch normalization computes its statistics over all processes, not within each process"
    )
    lr: float = setting(0.1, "the highest learning rate, for the head and all sections without one in `rates`", above=0)
    schedule: str = setting(
        "one_cycle",
        "how the learning rate changes. In a shell, quote the parentheses",
        check=check_schedule,
        accepts=" | ".join(EXAMPLES.values()),
    )
    warmup: float | None = setting(
        None,
        "fraction of all steps in which the learning rate rises from 1/25 of `lr`. If not set, 0.25 for one_cycle and "
        "cosine and 0 for the others",
        minimum=0,
        maximum=1,
    )
    rates: Mapping[str, float] = setting(
        {},
        'highest learning rates by section ("stem", "stage1", ..., "head"); 0 freezes a section: neither its '
        "weights nor its running statistics change. A section without an entry learns at `lr`, but not faster than "
        "the section after it. The entry `layer_decay` is a factor: the learning rate of a section without an entry is "
        "this factor times that of the section after it",
        check=_check_rates,
        accepts="mapping from sections to numbers of at least 0",
    )
    unfreeze: int | tuple[int, int] = setting(
        0,
        "N trains only the head for N epochs, then everything. [N, M] then unfreezes one section every M epochs, from "
        "the last to the first (gradual unfreezing, Howard and Ruder 2018). Frozen sections stay frozen",
        minimum=0,
        example="1 or [1, 2]",
    )
    optimizer: str = setting(
        "sgd",
        'the update rule: torch\'s "sgd"; "adamw" (Loshchilov and Hutter 2019), whose first beta is `momentum`; '
        '"muon" (Jordan et al. 2024); "scratch_sgd" of `resnetlab.scratch`; any other optimizer of `torch.optim` by '
        'its name in lower case; or your own. Further options in parentheses: "rmsprop(alpha=0.9)"',
        choices=OPTIMIZERS,
        check=OPTIMIZERS.check,
    )
    momentum: float = setting(0.9, "momentum of the optimizer", minimum=0, below=1)
    nesterov: bool = setting(True, "whether to use Nesterov momentum (Sutskever et al. 2013)")
    weight_decay: float = setting(
        5e-4,
        "decay of convolution and linear weights; decoupled from the gradient in adamw and muon, which usually need "
        "larger values",
        minimum=0,
    )
    decay_all: bool = setting(
        False,
        "whether weight decay also applies to normalization scales and shifts and to biases, as in He et al. 2016",
    )
    clip_norm: float = setting(
        0.0,
        "maximum norm of the gradient of all parameters; a larger gradient is scaled down (Pascanu et al. 2013). 0 "
        "disables clipping",
        minimum=0,
    )
    loss: str = setting(
        "cross_entropy",
        'what training minimizes: torch\'s "cross_entropy"; "scratch_cross_entropy" of `resnetlab.scratch`; "focal" '
        '(Lin et al. 2017), or "focal(gamma=1.5)"; "binary_cross_entropy" of each class with logits (Wightman et al. '
        "2021); or your own. Evaluation always reports the cross-entropy",
        choices=LOSSES,
        check=LOSSES.check,
    )
    label_smoothing: float = setting(
        0.0, "fraction of the target that is spread over all classes (Szegedy et al. 2016)", minimum=0, below=1
    )
    class_weights: str | tuple[float, ...] | Mapping[str, float] = setting(
        "none",
        'weight of a sample in the loss by its class. "balanced": the inverse of the size of the class; the average '
        "weight is 1. Or a weight per class, in the order of the classes; or weights by class name, 1 for the others",
        check=_check_class_weights,
        accepts="none | balanced | sequence of numbers | mapping from class names to numbers",
    )
    sampling: str = setting(
        "all",
        'which images an epoch shows. "all": each image once. "balanced": as many images in total, and equally many of '
        "each class, so images of small classes are repeated and some images of large ones are left out",
        choices=("all", "balanced"),
    )
    skip_easy: float = setting(
        0.0,
        "fraction of the images that an epoch leaves out, drawn from the 80 % with the lowest losses (after Qin et al. "
        "2024). The losses of the others of these count more, so that the expected sum of an epoch's gradients stays "
        "the same. The first two epochs show all images, and so do all epochs with fewer than 100 steps, balanced "
        "sampling, mixup or CutMix",
        minimum=0,
        maximum=0.6,
    )
    framing: Mapping[str, int | float | str] = setting(
        {},
        "options of `load_data` that the recipe sets unless you set them, such as image_size. They apply only "
        "to the recipe's own networks and to networks that were published for the recipe's image size. The "
        "stem of these networks is not adapted to the image size",
        check=_check_framing,
        accepts="mapping from options to values",
    )
    normalize: str = setting(
        "data",
        'the mean and standard deviation that images are normalized with: those of the training images ("data"), '
        'those of ImageNet ("imagenet"), or 0 and 1 ("none"). Pretrained weights keep their own',
        choices=("data", "imagenet", "none"),
    )
    augment: Augmentation = setting(Augmentation(), "augmentation of the training images")
    start_size: float = setting(
        1.0,
        "size of the images in the first epoch, as a fraction of the final size. They grow evenly (progressive "
        "resizing, Howard 2018)",
        above=0,
        maximum=1,
    )
    grow_until: float = setting(
        0.5, "fraction of the epochs after which images have their final size", minimum=0, maximum=1
    )
    average: float = setting(
        0.0,
        "decay per step of the moving average of the weights (Polyak and Juditsky 1992). The averaged weights are "
        "validated and saved. Early steps use a smaller decay. 0 disables averaging",
        minimum=0,
        below=1,
    )
    validate_every: int = setting(1, "epochs between validations; the last epoch always has one", minimum=1)
    keep: str = setting(
        "final",
        "which weights to keep: the last ones, or those with the best validation top-1",
        choices=("final", "best"),
    )
    patience: int = setting(
        0, "training ends after this many epochs without a better validation top-1; 0 disables this", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0 and self.optimizer != "adamw":
            raise UserError("nesterov=True needs momentum above 0. Set nesterov=False, or give a momentum.")
        if self.label_smoothing and not smooths(self.loss):
            raise UserError(
                f"loss={self.loss!r} takes no label smoothing, and label_smoothing is {self.label_smoothing:g}. Set "
                "label_smoothing=0."
            )
        if self.weight_decay and not takes_weight_decay(self.optimizer):
            raise UserError(
                f"optimizer={self.optimizer!r} takes no weight decay, and weight_decay is {self.weight_decay:g}. Set "
                "weight_decay=0."
            )
        if self.sampling == "balanced" and self.class_weights == "balanced":
            raise UserError(
                "class_weights and sampling are both 'balanced', which would count small classes twice. Choose one of "
                "them."
            )
        if isinstance(self.unfreeze, tuple) and self.unfreeze[1] == 0:
            raise UserError(
                f"unfreeze={list(self.unfreeze)} unfreezes a section every 0 epochs. To unfreeze all sections at once, "
                f"set unfreeze={self.unfreeze[0]}."
            )
        if 0 < self.patience < self.validate_every:
            raise UserError(
                f"patience={self.patience} ends training before the first validation, which comes after "
                f"validate_every={self.validate_every} epochs. Set patience to at least validate_every."
            )
        if self.batch_size < 2 * self.accumulate:
            raise UserError(
                f"batch_size={self.batch_size} leaves fewer than two images for each of accumulate={self.accumulate} "
                "micro-batches. Use fewer micro-batches or a larger batch."
            )

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Returns the learning rate of a step, from 0 over all epochs, in a training of `total_steps`."""
        schedule = read_schedule(self.schedule)
        return schedule.learning_rate(self.lr, step, total_steps, epochs=self.epochs, warmup=self.warmup)

    def image_size(self, epoch: int, final: int) -> int:
        """Returns height and width of the training images in an epoch, from 0.

        They grow evenly from `start_size` times `final` to `final`, which they have after `grow_until` of the epochs,
        in multiples of 4 pixels and at least 16.
        """
        growing = self.grow_until * self.epochs
        if self.start_size == 1 or epoch >= growing:
            return final
        fraction = self.start_size + (1 - self.start_size) * epoch / growing
        return min(final, max(_SMALLEST_SIZE, _SIZE_STEP * round(fraction * final / _SIZE_STEP)))

    def with_scaled_rates(self, factor: float) -> Recipe:
        """Returns the recipe with all learning rates multiplied by `factor`."""
        rates = {name: rate if name == LAYER_DECAY else factor * rate for name, rate in self.rates.items()}
        return self.changed(lr=factor * self.lr, rates=rates)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, nested, as a file stores them; None is left out."""
        values = dataclasses.asdict(self)
        values["augment"] = {key: value for key, value in values["augment"].items() if value is not None}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Makes a recipe of the values of `to_dict`; an unknown key is an error that names the nearest field."""
        return from_mapping(cls, values, "the recipe")

    def changed(self, /, **changes: Any) -> Recipe:
        """Returns a recipe with other values; "augment.flip", "rates.head" and the like name nested fields.

        A function given as `augment` is added to the steps of the augmentation.

        Raises:
            UserError: a field is unknown (the message names the nearest one), or a value is out of range.
        """
        values = self.to_dict()
        for key, value in changes.items():
            outer, dot, inner = key.partition(".")
            if key == "augment" and callable(value):  # one more step
                values[key] = {**values[key], "steps": [*values[key]["steps"], value]}
            elif dot and isinstance(values.get(outer), dict):
                values[outer] = {**values[outer], inner: value}
            else:
                values[key] = value
        return Recipe.from_dict(values)
