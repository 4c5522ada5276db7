"""The options of `load_data`; a run folder records them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resnetlab.core.fields import REQUIRED, documented, setting
from resnetlab.core.framing import FramingOptions

STORES = ("auto", "memory", "pack")


@documented
@dataclass(frozen=True, kw_only=True)
class LoadOptions(FramingOptions):
    """What `load_data` was called with.

    Raises:
        UserError: a value is out of range.
    """

    source: str = setting(REQUIRED, "name of a data set or path of a folder, table or pack")
    data_root: str | None = setting(
        None,
        "the folder of downloaded data sets, in torchvision's layout; by default $RESNETLAB_DATA, or else `data`",
        check=lambda name, value: str(value),
        accepts="path",
    )
    detail: float = setting(
        1.5,
        "training photos are stored with their aspect ratio and a shorter side of up to this multiple of image_size, "
        "so that random crops have enough pixels",
        minimum=1,
    )
    store: str = setting(
        "auto",
        'where decoded photos are kept. "memory": in memory. "pack": in files that are read as needed, written once to '
        '$RESNETLAB_CACHE or the user\'s cache folder. "auto": in memory if they need at most half of the free memory, '
        "otherwise in a pack",
        choices=STORES,
    )
    class_names: tuple[str, ...] | None = setting(
        None,
        "the classes in the order of the labels, for a table or arrays whose labels are integers",
        check=lambda name, value: tuple(value),
        accepts="sequence of texts",
    )
    add: str | None = setting(
        None,
        "a folder of class folders, such as the corrections that `serve` collects, whose images join the training "
        "split only; their classes must be among those of the source",
        check=lambda name, value: str(value),
        accepts="path",
    )
    split_seed: int = setting(
        0,
        "seed for drawing the splits that the source does not provide; independent of the training's seed, so that "
        "runs with several seeds are compared on the same images",
        minimum=0,
        maximum=2**32 - 1,
    )
    validation_fraction: float = setting(
        0.1,
        "fraction of the training images that becomes the validation split if the source has none",
        minimum=0,
        below=1,
    )
    test_fraction: float = setting(
        0.2,
        "fraction of all images that becomes the test split of a source without splits; 1 makes all of them test "
        "images",
        minimum=0,
        maximum=1,
    )
    limit: int | None = setting(
        None,
        "the largest number of training images, drawn with `split_seed` so that the class proportions stay the same; "
        "other splits are not reduced",
        minimum=1,
    )
    limit_held_out: int | None = setting(
        None, "the largest number of validation images, and of test images, drawn as for `limit`", minimum=1
    )
    skip_unreadable: bool = setting(False, "skip unreadable files with a warning instead of raising")
    follow_links: bool = setting(False, "follow symbolic links that point outside the image folder")

    @property
    def limits(self) -> dict[str, int]:
        """The largest number of images by split, for those that have a limit."""
        limits: dict[str, Any] = {
            "train": self.limit,
            "validation": self.limit_held_out,
            "test": self.limit_held_out,
        }
        return {split: limit for split, limit in limits.items() if limit is not None}
