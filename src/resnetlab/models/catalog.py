"""The catalog: every named network, one line of data each."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetlab.core.checks import check_integer, from_mapping
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.foreign import model_hint
from resnetlab.models.config import ResNetConfig
from resnetlab.models.stems import stem_for


@dataclass(frozen=True)
class Entry:
    """One named network.

    Attributes:
        image_size: height and width in pixels of the images that it was published for.
        source: the paper or library that published it.
        fields: the fields of its `ResNetConfig` that differ from the defaults.
    """

    image_size: int
    source: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ResNetConfig:
        """The published architecture."""
        return ResNetConfig(**self.fields)


BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {
    **{14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
    **{200: (3, 24, 36, 3), 201: (3, 24, 36, 4), 269: (3, 30, 48, 8)},
    **{270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4)},
}

HE = "He et al. 2016"
HE_B = "He et al. 2016b"
BAG_OF_TRICKS = "He et al. 2019"
HU = "Hu et al. 2018"
WIDE = "Zagoruyko and Komodakis 2016"
XIE = "Xie et al. 2017"
ZHANG = "Zhang 2019"
WANG = "Wang et al. 2020"
BIT = "Kolesnikov et al. 2020"
BELLO = "Bello et al. 2021"
TIMM = "timm"
GLUON = "Gluon's model zoo"
OURS = "ResNetLab"
# The sources of the teaching networks; docs/origins.md describes them.
FROM_SCRATCH = "from-scratch notebook"
D2L = "d2l"
TUTORIAL = "Imagenette tutorial"
TABLE1 = "Table 1 notebook"


def _imagenet(layers: int, source: str, *kinds: dict[str, Any], image_size: int = 224, **fields: Any) -> Entry:
    """Four stages for photos, with the fields of these kinds; networks of 10, 18 and 34 layers have basic blocks."""
    network = {"depths": BASIC[layers]} if layers in BASIC else {"block": "bottleneck", "depths": BOTTLENECK[layers]}
    for kind in kinds:
        network |= kind
    return Entry(image_size, source, {**network, **fields})


def _resnext(groups: int, width: int) -> dict[str, int]:
    """Bottlenecks whose 3x3 has groups, of a width in the first stage."""
    return {"groups": groups, "width_per_group": width}


def _bit(layers: int, factor: int, image_size: int) -> Entry:
    """Big Transfer: pre-activation, group normalization and standardized kernels, `factor` times as wide."""
    widths = tuple(factor * width for width in (64, 128, 256, 512))
    return _imagenet(
        layers, BIT, _IDENTITY_MAPPINGS, _BIT, image_size=image_size, **({"widths": widths} if factor > 1 else {})
    )


def _cifar(layers: int, source: str = HE, **fields: Any) -> Entry:
    """Three stages for images of 32 pixels: 6n + 2 layers with basic blocks, 9n + 2 with bottlenecks."""
    depth = (layers - 2) // (9 if fields.get("block") == "bottleneck" else 6)
    network = {"depths": (depth,) * 3, "widths": (16, 32, 64), "stem": "cifar", "num_classes": 10}
    return Entry(32, source, {**network, **fields})


def _wide(layers: int, factor: int) -> Entry:
    """WRN-layers-factor: 6n + 4 layers, with blocks `factor` times as wide as the stem's 16 channels."""
    widths = tuple(factor * width for width in (16, 32, 64))
    return _cifar(layers - 2, WIDE, widths=widths, stem_width=16, **_IDENTITY_MAPPINGS)


def _small(layers: int, depth: int) -> Entry:
    """Three stages of 64, 128 and 256 channels, for gray images of 28 pixels."""
    fields = {"depths": (depth,) * 3, "widths": (64, 128, 256), "stem": "cifar", "in_channels": 1, "num_classes": 10}
    return Entry(28, TUTORIAL, fields)


def _table1(layers: int) -> Entry:
    """Table 1 taken literally: biased convolutions, neither normalization nor activation after stem and projections."""
    fields: dict[str, Any] = {"conv_bias": "all", "stem_norm": False, "stem_activation": False, "shortcut_norm": False}
    if layers not in BASIC:
        fields |= {"shortcut": "C", "stride_on": "1x1"}
    return _imagenet(layers, TABLE1, **fields, init="torch")


def _zoo(layers: int, version: int) -> Entry:
    """Gluon's networks: biased 1x1 convolutions and stride on the first in v1, pre-activation in v2."""
    fields: dict[str, Any] = {"running_variance": "biased"}
    if version == 2:
        fields |= {"preactivation": True, "shortcut_norm": False, "input_norm": True}
    elif layers not in BASIC:
        fields |= {"conv_bias": "pointwise", "stride_on": "1x1"}
    return _imagenet(layers, GLUON, **fields)


_IDENTITY_MAPPINGS = {"preactivation": True, "stem_norm": False, "stem_activation": False, "shortcut_norm": False}
_C: dict[str, Any] = {"stem": "deep"}
_D = {"stem": "deep", "avg_down": True}
_S = {"stem": "deep", "stem_width": 128}
_T = {"stem": "tiered", "avg_down": True}
_SE, _ECA = {"attention": "se"}, {"attention": "eca"}
_BLUR, _AVG = {"antialias": "blur"}, {"antialias": "avg"}
_RS = {**_D, **_SE, "attention_ratio": 0.25, "stem_pool": "conv"}
_SENET = {**_S, **_SE, "shortcut_kernel": 3, "first_reduction": 2}
_BIT = {"norm": "group", "weight_standardization": True, "stem_pool": "padded_max"}

CATALOG: dict[str, Entry] = {
    **{f"resnet{n}": _imagenet(n, TIMM if n == 26 else HE) for n in (18, 26, 34, 50, 101, 152)},
    "resnet200": _imagenet(200, HE_B),
    "resnet50_gn": _imagenet(50, "Wu and He 2018", norm="group"),
    **{f"resnet{n}c": _imagenet(n, BAG_OF_TRICKS, _C) for n in (50, 101, 152)},
    **{f"resnet{n}d": _imagenet(n, BAG_OF_TRICKS, _D) for n in (18, 26, 34, 50, 101, 152)},
    "resnet200d": _imagenet(200, BAG_OF_TRICKS, _D, image_size=256),
    **{f"resnet{n}s": _imagenet(n, TIMM, _S) for n in (50, 101, 152)},
    **{f"resnet{n}t": _imagenet(n, TIMM, _T, image_size=176) for n in (10, 14)},
    "resnet26t": _imagenet(26, TIMM, _T, image_size=256),
    "resnet50t": _imagenet(50, TIMM, _T),
    **{f"seresnet{n}": _imagenet(n, HU, _SE) for n in (18, 34, 50, 101, 152)},
    "seresnet50t": _imagenet(50, TIMM, _T, _SE),
    **{f"seresnet{n}d": _imagenet(n, TIMM, _D, _SE, image_size=256) for n in (152, 200, 269)},
    "senet154": _imagenet(152, HU, _SENET, _resnext(64, 4)),
    **{f"ecaresnet{n}d": _imagenet(n, WANG, _D, _ECA) for n in (50, 101)},
    "ecaresnet200d": _imagenet(200, TIMM, _D, _ECA, image_size=256),
    "ecaresnet269d": _imagenet(269, TIMM, _D, _ECA, image_size=320),
    **{f"ecaresnet{n}t": _imagenet(n, TIMM, _T, _ECA, image_size=256) for n in (26, 50)},
    "ecaresnetlight": _imagenet(50, TIMM, _ECA, depths=(1, 1, 11, 3), avg_down=True),
    **{f"resnetblur{n}": _imagenet(n, ZHANG, _BLUR) for n in (18, 50)},
    **{f"resnetblur{n}d": _imagenet(n, TIMM, _D, _BLUR) for n in (50, 101)},
    "resnetaa50": _imagenet(50, TIMM, _AVG),
    **{f"resnetaa{n}d": _imagenet(n, TIMM, _D, _AVG) for n in (34, 50, 101)},
    "seresnetaa50d": _imagenet(50, TIMM, _D, _AVG, _SE),
    **{
        f"resnetrs{n}": _imagenet(n, BELLO, _RS, image_size=size)
        for n, size in ((50, 160), (101, 192), (152, 256), (200, 256), (270, 256), (350, 288), (420, 320))
    },
    **{f"resnetv2_{n}": _imagenet(n, HE_B, _IDENTITY_MAPPINGS) for n in (18, 34, 50, 101, 152)},
    **{f"resnetv2_{n}d": _imagenet(n, TIMM, _IDENTITY_MAPPINGS, _D) for n in (18, 34, 50, 101, 152)},
    "resnetv2_50t": _imagenet(50, TIMM, _IDENTITY_MAPPINGS, _T),
    **{
        f"resnetv2_50d_{name}": _imagenet(50, TIMM, _IDENTITY_MAPPINGS, _D, norm=norm)
        for name, norm in (("gn", "group"), ("frn", "frn"), ("evos", "evonorm"))
    },
    **{
        f"resnetv2_{n}x{factor}_bit": _bit(n, factor, size)
        for n, factor, size in ((50, 1, 224), (50, 3, 448), (101, 1, 448), (101, 3, 448), (152, 2, 224), (152, 4, 480))
    },
    **{f"wide_resnet{n}_2": _imagenet(n, WIDE, width_per_group=128) for n in (50, 101)},
    "resnext50_32x4d": _imagenet(50, XIE, _resnext(32, 4)),
    **{f"resnext101_32x{width}d": _imagenet(101, XIE, _resnext(32, width)) for width in (4, 8, 16, 32)},
    "resnext101_64x4d": _imagenet(101, XIE, _resnext(64, 4)),
    "resnext50d_32x4d": _imagenet(50, TIMM, _D, _resnext(32, 4)),
    "seresnext26d_32x4d": _imagenet(26, TIMM, _D, _SE, _resnext(32, 4)),
    "seresnext26t_32x4d": _imagenet(26, TIMM, _T, _SE, _resnext(32, 4)),
    **{f"seresnext{n}_32x4d": _imagenet(n, HU, _SE, _resnext(32, 4)) for n in (50, 101)},
    "seresnext101_32x8d": _imagenet(101, TIMM, _SE, _resnext(32, 8)),
    "seresnext101d_32x8d": _imagenet(101, TIMM, _D, _SE, _resnext(32, 8)),
    "seresnext101_64x4d": _imagenet(101, TIMM, _SE, _resnext(64, 4)),
    "seresnextaa101d_32x8d": _imagenet(101, TIMM, _D, _AVG, _SE, _resnext(32, 8), image_size=288),
    "seresnextaa201d_32x8d": _imagenet(201, TIMM, _D, _AVG, _SE, _resnext(32, 8), stem_width=128, image_size=384),
    **{f"ecaresnext{n}t_32x4d": _imagenet(n, TIMM, _T, _ECA, _resnext(32, 4)) for n in (26, 50)},
    **{f"plain{n}": _imagenet(n, HE, shortcut="none") for n in (18, 34)},
    **{f"resnet{n}": _cifar(n, shortcut="A") for n in (20, 32, 44, 56, 110, 1202)},
    **{f"plain{n}": _cifar(n, shortcut="none") for n in (20, 32, 44, 56, 110)},
    "preact_resnet110": _cifar(110, HE_B, **_IDENTITY_MAPPINGS),
    **{
        f"preact_resnet{n}": _cifar(n, HE_B, block="bottleneck", stem_width=16, **_IDENTITY_MAPPINGS)
        for n in (164, 1001)
    },
    "wrn16_4": _wide(16, 4),
    "wrn28_10": _wide(28, 10),
    "wrn40_4": _wide(40, 4),
    **{f"small_resnet{n}": _small(n, depth) for n, depth in ((14, 2), (20, 3), (32, 5), (44, 7), (56, 9))},
    "quick_resnet": Entry(
        32,
        OURS,
        {"depths": (1, 1, 1), "widths": (32, 64, 128), "stem": "cifar", "num_classes": 10},
    ),
    "best_resnet": Entry(
        32,
        OURS,
        {"depths": (1, 2, 2), "widths": (64, 128, 256), "stem": "cifar", "num_classes": 10},
    ),
    "photo_resnet": Entry(96, OURS, {"depths": (2, 2, 2), "widths": (64, 128, 256)}),
    "scratch_resnet50": Entry(
        96,
        FROM_SCRATCH,
        {
            **{"block": "bottleneck", "depths": BOTTLENECK[50], "shortcut": "C", "stride_on": "1x1"},
            **{"running_variance": "biased", "in_channels": 1, "num_classes": 10, "parts": "scratch"},
        },
    ),
    "d2l_resnet18": Entry(
        96,
        D2L,
        {"conv_bias": "all", "shortcut_norm": False, "init": "xavier", "in_channels": 1, "num_classes": 10},
    ),
    **{f"table1_resnet{n}": _table1(n) for n in (18, 34, 50, 101, 152)},
    **{f"zoo_resnet{n}_v1": _zoo(n, 1) for n in (18, 34, 50)},
    **{f"zoo_resnet{n}_v2": _zoo(n, 2) for n in (18, 50)},
}


_TIMM_NAMES = r"(wide_|se|eca)?resne[tx].*|senet154"
TIMM_NETWORKS = tuple(
    name for name, entry in CATALOG.items() if re.fullmatch(_TIMM_NAMES, name) and entry.fields.get("stem") != "cifar"
)
"""The networks of the catalog that timm has under the same names."""
UNPUBLISHED = (
    *("resnet200", "resnet50t", "seresnet18", "seresnet34", "seresnet101", "seresnet152", "seresnet50t"),
    *("seresnet200d", "seresnet269d", "seresnetaa50d", "ecaresnet200d", "ecaresnext26t_32x4d", "ecaresnext50t_32x4d"),
    *("resnetblur18", "resnetblur50d", "resnetblur101d", "resnetaa34d", "resnetv2_50d", "resnetv2_50t"),
    *("resnetv2_50d_frn", "resnetv2_101d", "resnetv2_152", "resnetv2_152d"),
)
"""The networks among them whose weights nobody publishes (timm 1.0.31)."""

_LIST = "resnetlab list models"


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Returns the names in the catalog that match a shell pattern, such as "plain*", in the order of the catalog.

    Args:
        pattern: the shell pattern.
        pretrained: return only the networks for which torchvision or timm publishes weights.

    Raises:
        UserError: the pattern is not text.
    """
    if not isinstance(pattern, str):
        raise UserError(f"pattern must be text, such as 'resnet*', got {brief(pattern)}.")
    names = [name for name in CATALOG if fnmatch.fnmatchcase(name, pattern)]
    return [name for name in names if name in TIMM_NETWORKS and name not in UNPUBLISHED] if pretrained else names


def differences(config: ResNetConfig, other: ResNetConfig) -> dict[str, Any]:
    """Returns the fields of a configuration that differ from those of another one, ready for a file.

    The numbers of channels and classes are left out.
    """
    ours, theirs = config.to_dict(), other.to_dict()
    return {
        key: ours.get(key)
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if ours.get(key) != theirs.get(key) and key not in ("in_channels", "num_classes")
    }


def model_config(
    name: str | ResNetConfig, overrides: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> ResNetConfig:
    """Returns the configuration that `create_model` builds for a name, or for a configuration, and fields to change."""
    if isinstance(name, ResNetConfig):
        return _changed(name.to_dict(), name.stem, overrides or {}, image_size)
    if not isinstance(name, str) or name not in CATALOG:
        raise _unknown_model(name)
    return _changed(CATALOG[name].fields, CATALOG[name].config.stem, overrides or {}, image_size)


def source_of(config: ResNetConfig) -> str:
    """Returns the teaching text that built this network, whatever its channels and classes, or ""."""
    free = {name: getattr(config, name) for name in ("in_channels", "num_classes", "parts", "init")}
    texts = (entry for entry in CATALOG.values() if entry.source in (D2L, TABLE1))
    return next((entry.source for entry in texts if dataclasses.replace(entry.config, **free) == config), "")


def config_for_data(
    name: str,
    *,
    image_size: int,
    in_channels: int,
    num_classes: int,
    overrides: Mapping[str, Any] | None = None,
) -> ResNetConfig:
    """Returns the configuration of a named network for a data set: its channels, classes, and stem for its image size.

    A network published with the "cifar" stem keeps it; others get "auto". `overrides` take precedence.
    """
    taken: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
    if name in CATALOG and CATALOG[name].config.stem != "cifar":
        taken["stem"] = "auto"
    return model_config(name, {**taken, **(overrides or {})}, image_size=image_size)


def _changed(
    fields: Mapping[str, Any], published_stem: str, overrides: Mapping[str, Any], image_size: int | None
) -> ResNetConfig:
    changed = {**fields, **overrides}
    if image_size is not None:
        image_size = check_integer("image_size", image_size, 1)
    if changed.get("stem") == "auto":
        if image_size is None:
            raise UserError('stem="auto" needs image_size. Pass it, in pixels, or choose a stem.')
        changed["stem"] = stem_for(image_size, published_stem)
    return from_mapping(ResNetConfig, changed, "a network")


def _unknown_model(name: object) -> UserError:
    if name == "":
        return UserError(
            "create_model needs a name, such as create_model('resnet18', depths=(2, 2, 2, 2)), or a ResNetConfig. "
            f"`{_LIST}` lists the names."
        )
    if hasattr(name, "named_modules"):
        return UserError(
            f"create_model builds a network by its name, got {brief(name)}. If you already have a network "
            "object, pass it to fit."
        )
    found = model_hint(name, CATALOG)
    if isinstance(name, str) and ("/" in name or "\\" in name or Path(name).suffix):
        return UserError(
            f"{brief(name)} is neither an existing path nor a network of the catalog. {found[1] if found else ''}"
            f"`{_LIST}` lists the networks."
        )
    if found:
        return UserError(f"unknown model {brief(name)}. {found[1]}`{_LIST}` lists all {len(CATALOG)} names.")
    return unknown("model", name, CATALOG, likely=_of_the_same_kind(name), listed_by=_LIST)


def _of_the_same_kind(name: Any) -> str | None:
    """Returns the network of the nearest depth if only the number in a name is unknown.

    A number with one digit too many or too few is nearer than a close number: 500 means 50, not 152, and 21 means 20.
    """
    shape = re.fullmatch(r"(\D*)(\d+)(.*)", str(name))
    if shape is None:
        return None
    alike = [re.fullmatch(re.escape(shape[1]) + r"(\d+)" + re.escape(shape[3]), known) for known in CATALOG]
    wanted = shape[2]
    distances = {
        match[0]: (not (match[1].startswith(wanted) or wanted.startswith(match[1])), abs(int(match[1]) - int(wanted)))
        for match in alike
        if match
    }
    return min(distances, key=lambda known: distances[known], default=None)
