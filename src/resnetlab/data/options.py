"""The arguments of `load_data`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError
from resnetlab.core.resize import FITS

STORES = ("auto", "memory", "pack")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What `load_data` was called with; a run folder records it."""

    source: str
    data_root: str | None = None
    image_size: int | None = None
    channels: int | None = None
    fit: str = "crop"
    crop_share: float = 1.0
    detail: float = 1.5
    store: str = "auto"
    class_names: tuple[str, ...] | None = None
    split_seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    limit: int | None = None
    limit_held_out: int | None = None
    skip_unreadable: bool = False
    follow_links: bool = False

    def __post_init__(self) -> None:
        if self.data_root is not None:
            set_checked(self, data_root=str(self.data_root))  # a path, as files hold it
        if self.image_size is not None:
            set_checked(self, image_size=check_integer("image_size", self.image_size, 1))
        for name in ("limit", "limit_held_out"):
            if (value := getattr(self, name)) is not None:
                set_checked(self, **{name: check_integer(name, value, 1)})
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (gray) or 3 (RGB), got {self.channels!r}.")
        if check_integer("split_seed", self.split_seed, 0) >= 2**32:
            raise UserError(f"split_seed must be below 2**32, got {self.split_seed}.")
        check_choice("fit", self.fit, FITS)
        check_choice("store", self.store, STORES)
        if self.class_names is not None:
            set_checked(self, class_names=tuple(self.class_names))
        set_checked(
            self,
            split_seed=int(self.split_seed),
            crop_share=check_number("crop_share", self.crop_share, 0, 1, above=True),
            detail=check_number("detail", self.detail, 1),
            validation_fraction=check_number("validation_fraction", self.validation_fraction, 0, 1, below=True),
            test_fraction=check_number("test_fraction", self.test_fraction, 0, 1),
            skip_unreadable=check_flag("skip_unreadable", self.skip_unreadable),
            follow_links=check_flag("follow_links", self.follow_links),
        )

    @property
    def limits(self) -> dict[str, int]:
        """The most images to take of a split, by its name, where there is a limit."""
        limits = {"train": self.limit, "validation": self.limit_held_out, "test": self.limit_held_out}
        return {split: limit for split, limit in limits.items() if limit is not None}
