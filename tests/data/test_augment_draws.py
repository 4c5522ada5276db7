"""What is drawn: shares, ranges, streams; the automatic policies; mixing; and batches of several ranks."""

from __future__ import annotations

import dataclasses
import functools
import threading
import tomllib
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import framed
from torch import Tensor
from torchvision.transforms import v2

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import Draws
from resnetlab.data.augment import Augmentation, augment
from resnetlab.data.augment.mixing import Mix, draw_mix
from resnetlab.data.augment.parameters import OPERATIONS, AugmentationParameters, add_operations, draw_parameters
from resnetlab.data.augment.pipeline import _workers
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.storage.images import Ragged
from resnetlab.data.storage.store import Split
from resnetlab.training.recipe import Recipe

COUNT = 4000
FIELDS = [field.name for field in dataclasses.fields(AugmentationParameters)]
OFF = Augmentation(crop_padding=0, flip=False)

# Every parameter of the recipe imagenette-tutorial, with mixing and an automatic policy added.
FULL: dict[str, Any] = {
    "crop_scale": (0.75, 1.0), "crop_ratio": (0.9, 1.05), "flip": True, "vertical_flip": True, "rotation": 10.0,
    "shear": 5.0, "brightness": 0.15, "contrast": 0.15, "saturation": 0.1, "hue": 0.05, "autocontrast_p": 0.2,
    "blur_p": 0.3, "blur_kernel": 3, "blur_sigma": (0.1, 1.0), "sharpness": 1.5, "sharpness_p": 0.3,
    "perspective": 0.15, "perspective_p": 0.3, "erase_p": 0.1, "erase_area": (0.02, 0.08), "erase_ratio": (0.3, 3.3),
    "erase_fill": 0, "fill": 7, "mixup": 0.2, "cutmix": 1.0, "policy": "rand", "rand_operations": 3,
    "rand_magnitude": 5, "crop_padding": 0.0,
}  # fmt: skip


def drawn(
    policy: Augmentation, count: int = COUNT, *, step: int = 0, epoch: int = 0, seed: int = 0
) -> AugmentationParameters:
    shapes = np.tile([[60, 100]], (count, 1))
    return draw_parameters(policy, shapes, framed(32), Draws(seed, epoch, step))


def same(first: AugmentationParameters, second: AugmentationParameters, *, but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in FIELDS if name not in but)


def binomial(share: float, count: int = COUNT) -> Any:
    """A share of `count` draws, within four standard deviations."""
    return pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


# --- shares and ranges ---


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_shares_are_those_asked_for(share: float):
    samples = drawn(
        dataclasses.replace(
            OFF,
            perspective=0.2,
            perspective_p=share,
            autocontrast_p=share,
            sharpness=2.5,
            sharpness_p=share,
            blur_p=share,
            erase_p=share,
        )
    )
    changed = {
        "perspective": samples.corners.any((1, 2)),
        "autocontrast": samples.autocontrast,
        "sharpness": samples.sharpness == 2.5,
        "blur": samples.sigma > 0,
        "erase": samples.hole[:, 2] > 0,
    }
    assert {name: rows.mean() for name, rows in changed.items()} == dict.fromkeys(changed, binomial(share))
    if 0 < share < 1:  # and of each other they do not depend
        for name, rows in changed.items():
            for other, theirs in changed.items():
                if name != other:
                    assert (rows & theirs).mean() == binomial(share**2), (name, other)


def test_half_are_mirrored_and_half_upside_down():
    samples = drawn(dataclasses.replace(OFF, flip=True, vertical_flip=True))
    assert samples.flip.mean() == binomial(0.5)
    assert samples.vertical_flip.mean() == binomial(0.5)
    assert (samples.flip & samples.vertical_flip).mean() == binomial(0.25)


def test_strengths_fill_their_ranges_evenly():
    samples = drawn(
        dataclasses.replace(
            OFF,
            rotation=30,
            shear=20,
            brightness=0.4,
            contrast=0.3,
            saturation=1,
            hue=0.1,
            perspective=0.6,
            perspective_p=1,
            blur_p=1,
            blur_sigma=(0.5, 2),
        )
    )
    ranges = {
        "angle": (samples.angle, -30, 30),
        "shear": (np.degrees(np.arctan(samples.shear[:, 0])), -20, 20),
        "brightness": (samples.brightness, 0.6, 1.4),
        "contrast": (samples.contrast, 0.7, 1.3),
        "saturation": (samples.saturation, 0, 2),
        "hue": (samples.hue, -0.1, 0.1),
        "corners": (samples.corners.reshape(-1), 0, 0.6),
        "sigma": (samples.sigma, 0.5, 2),
    }
    for name, (values, low, high) in ranges.items():
        assert low <= values.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < values.max() <= high, name
        shares = np.histogram(values, 4, (low, high))[0] / len(values)
        assert shares.tolist() == [binomial(0.25)] * 4, name
    assert not samples.shear[:, 1].any()


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(0.05, 0.6), spread=st.floats(0, 0.4), ratio=st.floats(0.3, 1), stretch=st.floats(1, 3),
    height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 1000),
)  # fmt: skip
def test_crops_lie_in_the_photo_with_areas_and_ratios_as_asked(
    low: float, spread: float, ratio: float, stretch: float, height: int, width: int, seed: int
):
    policy = dataclasses.replace(OFF, crop_scale=(low, low + spread), crop_ratio=(ratio, ratio * stretch))
    windows = draw_parameters(policy, np.tile([height, width], (200, 1)), framed(32), Draws(seed)).window
    left, top, wide, tall = windows.T
    assert (np.minimum(left, top) >= -1e-9).all()
    assert (left + wide <= width + 1e-9).all()
    assert (top + tall <= height + 1e-9).all()
    ratios = wide / tall
    assert ((ratios >= ratio * (1 - 1e-9)) & (ratios <= ratio * stretch * (1 + 1e-9))).all()
    areas = wide * tall / (height * width)
    inside = (areas >= low * (1 - 1e-9)) & (areas <= (low + spread) * (1 + 1e-9))
    # What fell back touches two opposite sides, at the center.
    fallen = np.isclose(left, (width - wide) / 2) & np.isclose(top, (height - tall) / 2)
    fallen &= np.isclose(wide, width) | np.isclose(tall, height)
    assert (inside | fallen).all()


def test_a_crop_that_never_fits_is_the_largest_allowed_at_the_center():
    policy = dataclasses.replace(OFF, crop_scale=(0.9, 1), crop_ratio=(0.5, 2))
    shapes = np.array([[20, 400], [400, 20]])
    windows = draw_parameters(policy, shapes, framed(32), Draws(0)).window
    np.testing.assert_allclose(windows, [[180, 0, 40, 20], [0, 180, 20, 40]])


def test_crops_of_a_square_photo_have_even_areas_and_reach_every_side():
    policy = dataclasses.replace(OFF, crop_scale=(0.2, 0.6), crop_ratio=(0.8, 1.25))
    left, top, wide, tall = draw_parameters(policy, np.tile([100, 100], (COUNT, 1)), framed(32), Draws(0)).window.T
    shares = np.histogram(wide * tall / 1e4, 4, (0.2, 0.6))[0] / COUNT
    assert shares.tolist() == [binomial(0.25)] * 4
    assert np.log(wide / tall).mean() == pytest.approx(0, abs=4 * np.log(1.25) / (3 * COUNT) ** 0.5)
    for start, length in ((left, wide), (top, tall)):
        place = start / (100 - length)
        assert place.min() < 0.01
        assert place.max() > 0.99
        assert place.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / COUNT) ** 0.5)


def test_shifts_are_whole_pixels_and_even():
    shift = drawn(dataclasses.replace(OFF, crop_padding=0.125)).shift
    assert np.array_equal(shift, np.rint(shift))
    for axis in (0, 1):
        values, counts = np.unique(shift[:, axis], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert (counts / COUNT).tolist() == [binomial(1 / 9)] * 9


# --- streams ---

KINDS = {
    "flip": ({"flip": True}, ("flip",)),
    "padding": ({"crop_padding": 0.2}, ("shift",)),
    "crop": ({"crop_scale": (0.2, 1)}, ("window", "shift")),
    "vertical_flip": ({"vertical_flip": True}, ("vertical_flip",)),
    "rotation": ({"rotation": 10}, ("angle",)),
    "shear": ({"shear": 10}, ("shear",)),
    "perspective": ({"perspective": 0.2}, ("corners",)),
    "brightness": ({"brightness": 0.2}, ("brightness",)),
    "contrast": ({"contrast": 0.2}, ("contrast",)),
    "saturation": ({"saturation": 0.2}, ("saturation",)),
    "hue": ({"hue": 0.2}, ("hue",)),
    "autocontrast": ({"autocontrast_p": 0.5}, ("autocontrast",)),
    "sharpness": ({"sharpness_p": 0.5}, ("sharpness",)),
    "blur": ({"blur_p": 0.5}, ("sigma",)),
    "erase": ({"erase_p": 0.5}, ("hole",)),
}
STRONG = Augmentation(
    crop_padding=0.1, flip=True, vertical_flip=True, rotation=5, shear=5, perspective=0.3, brightness=0.1, contrast=0.1,
    saturation=0.1, hue=0.1, autocontrast_p=0.3, sharpness_p=0.3, blur_p=0.3, erase_p=0.3,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [OFF, STRONG], ids=["off", "on"])
def test_switching_one_kind_leaves_all_other_draws_as_they_were(kind: str, base: Augmentation):
    changes, touched = KINDS[kind]
    if base is STRONG:  # there another strength, or none
        changes = {name: {True: False, 0.5: 1.0}.get(value, value) for name, value in changes.items()}
    before, after = drawn(base, 200), drawn(dataclasses.replace(base, **changes), 200)
    assert same(before, after, but=touched)
    assert not same(before, after)


def test_no_two_streams_are_the_same():
    samples = drawn(
        dataclasses.replace(OFF, rotation=1, brightness=1, contrast=1, saturation=1, hue=0.5, perspective=1), 500
    )
    columns = [samples.angle, samples.brightness, samples.contrast, samples.saturation, samples.hue]
    correlation = np.corrcoef(columns)
    assert np.abs(correlation - np.eye(5)).max() < 0.25


def test_draws_are_a_function_of_seed_epoch_and_step():
    first = drawn(STRONG, 100, seed=1, epoch=2, step=3)
    assert same(first, drawn(STRONG, 100, seed=1, epoch=2, step=3))
    for place in ({"seed": 2, "epoch": 2, "step": 3}, {"seed": 1, "epoch": 3, "step": 2}, {"seed": 1, "epoch": 2}):
        other = drawn(STRONG, 100, **place)
        for name in FIELDS:
            if name not in ("window", "equalize", "bits", "threshold"):
                assert not np.array_equal(getattr(first, name), getattr(other, name)), (name, place)


def test_augmented_images_are_a_function_of_seed_epoch_and_step():
    policy, (images, positions) = Augmentation(**FULL), (noise(12), np.arange(12))
    first = augment(images, positions, policy, Draws(1, 2, 3), framing=framed(16))
    assert torch.equal(first, augment(images, positions, policy, Draws(1, 2, 3), framing=framed(16)))
    assert not torch.equal(first, augment(images, positions, policy, Draws(1, 2, 4), framing=framed(16)))
    assert not torch.equal(first, augment(images, positions, policy, Draws(1, 3, 3), framing=framed(16)))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("size", [16, 240])  # an operation on an image of 240 pixels could be split between threads
@pytest.mark.parametrize("rows", [np.arange(12), np.array([4])], ids=["the batch", "one image"])
@pytest.mark.parametrize("channels", [1, 3])
def test_threads_have_no_say(threads: int, size: int, rows: np.ndarray, channels: int):
    policy, (images, positions) = Augmentation(**FULL), (noise(12)[:, :channels], np.arange(12))
    framing = dataclasses.replace(framed(size), channels=channels)
    own, made = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            made.append(augment(images, positions, policy, Draws(1, 2, 3), framing=framing, rows=rows))
    finally:
        torch.set_num_threads(own)
    assert torch.equal(*made)


def test_an_unresolved_flip_is_refused_in_all_paths():
    for policy in (Augmentation(), Augmentation(rotation=10), Augmentation(policy="trivial")):
        with pytest.raises(ValueError, match=r'flip.*"auto"'):
            augment(noise(2), np.arange(2), policy, Draws(0), framing=framed(16))


# --- as configuration ---


def test_imagenette_tutorial_is_one_policy_one_recipe_and_one_file():
    assert {*FULL, "steps"} == {field.name for field in dataclasses.fields(Augmentation)}
    policy = Augmentation(**FULL)
    recipe = Recipe().changed(**{f"augment.{name}": value for name, value in FULL.items()})
    assert recipe.augment == policy
    text = tomli_w.dumps(recipe.to_dict())
    read = Recipe.from_dict(tomllib.loads(text))
    assert read == recipe
    assert read.augment.crop_scale == (0.75, 1.0)
    assert isinstance(read.augment.erase_ratio, tuple)
    assert hash(read.augment) == hash(policy)


def test_lists_of_a_file_become_tuples_and_unknown_names_are_refused():
    recipe = Recipe().changed(**{"augment.crop_scale": [0.5, 1], "augment.rotation": 10})
    assert recipe.augment.crop_scale == (0.5, 1.0)
    assert recipe.augment.rotation == 10.0
    with pytest.raises(UserError, match=r"augment has no field 'rotate'\. Did you mean 'rotation'\? Its fields: "):
        Recipe().changed(**{"augment.rotate": 10})


REFUSED = [  # field, value, what the message says is expected
    *[
        (name, value, f"at most {most:g}")
        for name, most in {
            "crop_padding": 0.5,
            "rotation": 180,
            "shear": 80,
            "perspective": 1,
            "brightness": 1,
            "contrast": 1,
            "saturation": 1,
            "hue": 0.5,
            "perspective_p": 1,
            "autocontrast_p": 1,
            "sharpness_p": 1,
            "blur_p": 1,
            "erase_p": 1,
        }.items()
        for value in (-0.1, most + 0.5, "much", float("nan"), True)
    ],
    *[(name, value, "at least 0") for name in ("sharpness", "mixup", "cutmix") for value in (-1, float("inf"), None)],
    *[
        (name, value, "2 numbers")
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "erase_area", "erase_ratio")
        for value in (0.5, (0.5,), (0.1, 0.2, 0.3), "ab")
    ],
    *[(name, None, "2 numbers") for name in ("crop_ratio", "blur_sigma", "erase_area", "erase_ratio")],
    *[
        (name, (0.9, 0.2), "smaller number first")
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "erase_area", "erase_ratio")
    ],
    ("crop_scale", (0, 1), "above 0"),
    ("crop_scale", (0.5, 1.5), "at most 1"),
    ("erase_area", (-0.1, 1), "at least 0"),
    ("crop_ratio", (0, 1), "above 0"),
    ("blur_sigma", (0, 1), "at least 0.01"),
    ("erase_ratio", (0.3, float("inf")), "finite"),
    ("flip", "yes", "'auto'"),
    ("flip", None, "'auto'"),
    ("vertical_flip", "auto", "true or false"),
    *[(name, value, "at most 255") for name in ("fill", "erase_fill") for value in (-1, 0.5, 256)],
    ("blur_kernel", 4, "odd"),
    ("blur_kernel", 0, "at least 1"),
    ("blur_kernel", 3.0, "integer"),
    ("policy", "autoaugment", "trivial, rand"),
    ("policy", "trivia", "Did you mean 'trivial'?"),
    ("rand_operations", 0, "at least 1"),
    ("rand_magnitude", -1, "at least 0"),
    ("rand_magnitude", 31, "at most 30"),
]


@pytest.mark.parametrize(("name", "value", "expected"), REFUSED, ids=[f"{name}={value}" for name, value, _ in REFUSED])
def test_every_wrong_value_is_refused_with_what_was_expected_and_what_came(name: str, value: Any, expected: str):
    with pytest.raises(UserError, match=rf"augment\.{name}\b") as refused:
        Augmentation(**{name: value})
    assert expected in str(refused.value)
    received = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    assert any(repr(entry) in str(refused.value) for entry in received)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), np.int64(0)])
def test_numbers_of_numpy_become_plain_ones(value: Any):
    policy = Augmentation(brightness=value, crop_scale=(value or 0.5, 1))
    assert type(policy.brightness) is float
    assert policy.crop_scale is not None
    assert type(policy.crop_scale[0]) is float


def test_integers_of_numpy_can_be_written_to_a_file():
    assert "fill = 7" in tomli_w.dumps(Recipe(augment=Augmentation(fill=np.int64(7))).to_dict())  # type: ignore[arg-type]


# --- TrivialAugment and RandAugment ---


def with_operations(policy: Augmentation, count: int = COUNT, size: int = 100) -> AugmentationParameters:
    samples = drawn(policy, count)
    add_operations(samples, policy, size, Draws(0))
    return samples


@functools.cache
def many_trivial() -> AugmentationParameters:
    return with_operations(TRIVIAL, 30000)


def changed_fields(samples: AugmentationParameters) -> np.ndarray:
    """How many parameters of each sample differ from doing nothing; the two axes count for themselves."""
    plain = drawn(OFF, len(samples))
    changes = [
        (getattr(samples, name) != getattr(plain, name)).reshape(len(samples), -1)
        for name in FIELDS
        if name not in ("window", "hole", "corners")
    ]
    return np.concatenate(changes, axis=1).sum(1)


TRIVIAL = dataclasses.replace(OFF, policy="trivial")


def test_trivial_augment_does_one_operation_at_most():
    changed = changed_fields(with_operations(TRIVIAL))
    assert set(np.unique(changed)) == {0, 1}
    # Identity changes nothing; nor do nine operations at the least of 31 strengths, posterising at the two least.
    nothing = (1 + 9 / 31 + 3 / 31) / 14
    assert (changed == 0).mean() == binomial(nothing)


NAMES = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "saturation": "Color", "contrast": "Contrast",
    "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
}  # fmt: skip


NEUTRAL = {"posterize": 8, "solarize": 256 / 255}


def strength_of(samples: AugmentationParameters, operation: str) -> np.ndarray:
    """The parameter of an operation, in torchvision's units."""
    axis = 0 if operation.endswith("_x") else 1
    if operation.startswith("shear"):
        return samples.shear[:, axis]
    if operation.startswith("translate"):
        return samples.shift[:, axis]
    if operation == "posterize":
        return samples.bits
    if operation == "solarize":
        return samples.threshold / 255
    return samples.angle if operation == "rotate" else getattr(samples, operation) - 1


@pytest.mark.parametrize("operation", NAMES)
def test_trivial_augment_draws_every_strength_of_torchvisions_scale(operation: str):
    make, signed = v2.TrivialAugmentWide()._AUGMENTATION_SPACE[NAMES[operation]]
    scale = make(31, 100, 100).numpy().astype(np.float64)
    values = strength_of(many_trivial(), operation).astype(np.float64)
    neutral = NEUTRAL.get(operation, 0)
    found = np.unique(np.abs(values[values != neutral]).round(5))
    expected = np.unique(scale.round(5))
    expected = expected[expected != neutral]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    if signed:
        strong = values[values != 0]
        assert (strong > 0).mean() == binomial(0.5, len(strong))


def test_all_operations_are_drawn_equally_often():
    samples = many_trivial()
    for name, rows in {
        "autocontrast": samples.autocontrast,
        "equalize": samples.equalize,
        "solarize": samples.threshold <= 255,
    }.items():
        assert rows.mean() == binomial(1 / 14, 30000), name
    for name in ("rotate", "shear_x", "translate_y", "brightness"):
        assert (strength_of(samples, name) != 0).mean() == binomial(30 / 31 / 14, 30000), name


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_has_one_strength_which_is_torchvisions(magnitude: int):
    samples = with_operations(
        dataclasses.replace(OFF, policy="rand", rand_operations=1, rand_magnitude=magnitude), 5000
    )
    for operation, theirs in NAMES.items():
        make, _ = v2.RandAugment()._AUGMENTATION_SPACE[theirs]
        expected = float(make(31, 100, 100)[magnitude])
        values = strength_of(samples, operation).astype(np.float64)
        neutral = NEUTRAL.get(operation, 0)
        changed = np.abs(values[values != neutral])
        if expected == neutral:
            assert not len(changed), operation
        else:
            assert len(changed) / 5000 == binomial(1 / 14, 5000), operation
            np.testing.assert_allclose(changed, expected, rtol=1e-5, err_msg=operation)


@pytest.mark.parametrize("operations", [1, 2, 5])
def test_rand_augment_does_as_many_operations_as_asked(operations: int):
    policy = dataclasses.replace(OFF, policy="rand", rand_operations=operations, rand_magnitude=20)
    changed = changed_fields(with_operations(policy, 3000))
    assert changed.max() == operations
    # An operation drawn a second time changes no further parameter: 13 of 14 change one.
    expected = 13 * (1 - (13 / 14) ** operations)
    assert changed.mean() == pytest.approx(expected, rel=0.05)


def test_many_strong_operations_stay_within_what_parameters_allow():
    policy = Augmentation(
        flip=True, brightness=1, contrast=1, saturation=1, policy="rand", rand_operations=9, rand_magnitude=30
    )  # fmt: skip
    samples = with_operations(policy)
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        assert getattr(samples, name).min() >= 0, name
    assert samples.bits.min() >= 1
    assert samples.threshold.min() == 0
    shown = augment(noise(64), np.arange(64), policy, Draws(0), framing=framed(16))
    assert shown.isfinite().all()
    assert 0 <= shown.min() <= shown.max() <= 255.001


def test_automatic_operations_add_to_those_of_the_policy():
    base = dataclasses.replace(OFF, rotation=10)
    alone, both = drawn(base), with_operations(dataclasses.replace(base, policy="trivial"))
    turned = both.angle != alone.angle
    assert turned.mean() == binomial(30 / 31 / 14)
    steps = np.abs(both.angle - alone.angle)[turned] / 135 * 30
    np.testing.assert_allclose(steps, steps.round(), atol=1e-6)


def test_without_a_policy_nothing_is_added():
    assert same(drawn(STRONG, 50), with_operations(STRONG, 50))
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 14


# --- mixing ---


def mix_of(policy: Augmentation, count: int = 500, size: int = 32, step: int = 0) -> Mix:
    mix = draw_mix(policy, count, size, Draws(0, 0, step))
    assert mix is not None
    return mix


def test_nothing_is_mixed_without_a_policy_or_a_partner():
    assert draw_mix(OFF, 10, 32, Draws(0)) is None
    assert draw_mix(dataclasses.replace(OFF, mixup=1), 1, 32, Draws(0)) is None


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_partners_are_a_permutation_and_shares_are_shares(kind: str, alpha: float):
    mix = mix_of(dataclasses.replace(OFF, **{kind: alpha}), COUNT)
    assert sorted(mix.partners.tolist()) == list(range(COUNT))
    assert ((mix.ratios >= 0) & (mix.ratios <= 1)).all()
    deviation = (1 / (4 * (2 * alpha + 1))) ** 0.5  # of Beta(alpha, alpha)
    if kind == "mixup":
        assert mix.boxes is None
        assert mix.ratios.mean() == pytest.approx(0.5, abs=4 * deviation / COUNT**0.5)
        assert mix.ratios.std() == pytest.approx(deviation, rel=0.1)
    else:
        assert mix.boxes is not None
        top, left, height, width = mix.boxes.T
        assert mix.boxes.min() >= 0
        assert ((top + height <= 32) & (left + width <= 32)).all()
        assert np.array_equal(mix.ratios, 1 - height * width / 32**2)
        assert mix.ratios.mean() > 0.5  # rectangles are cut at the border


def test_with_both_half_of_the_batches_get_each():
    policy = dataclasses.replace(OFF, mixup=1, cutmix=1)
    cut = [mix_of(policy, 4, step=step).boxes is not None for step in range(600)]
    assert np.mean(cut) == binomial(0.5, 600)


def test_mixup_is_the_convex_combination_of_the_pixels():
    mix, images, rows = mix_of(dataclasses.replace(OFF, mixup=1), 20, 16), noise(20), np.arange(20)
    shown = mix(images, images[torch.from_numpy(mix.partners)], rows).double()
    share = torch.from_numpy(mix.ratios)[:, None, None, None]
    expected = share * images.double() + (1 - share) * images[torch.from_numpy(mix.partners)].double()
    assert (shown - expected).abs().max() < 1e-3


def test_cutmix_takes_its_rectangle_from_the_partner_and_the_rest_from_itself():
    mix, rows = mix_of(dataclasses.replace(OFF, cutmix=1), 20, 16), np.arange(20)
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    shown = mix(images, images[torch.from_numpy(mix.partners)], rows)
    assert torch.equal(images, torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16))
    for row, (image, partner, share) in enumerate(zip(shown, mix.partners, mix.ratios, strict=True)):
        kept = image == row
        assert (kept | (image == partner)).all()
        if partner != row:
            assert kept.double().mean().item() == pytest.approx(share, abs=1e-9)
            lost = ~kept[0]
            assert torch.equal(lost, lost.any(1)[:, None] & lost.any(0)[None])


# --- batches ---


def noise(count: int, size: int = 16) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def one_size(count: int = 18) -> Split:
    return Split(images=noise(count), labels=torch.arange(count) % 5, index=torch.arange(count))


def many_sizes(count: int = 18) -> Split:
    draws = np.random.default_rng(1)
    shapes = draws.integers(9, 40, (count, 2))
    sizes = shapes.prod(1) * 3
    flat = draws.integers(0, 256, sizes.sum(), dtype=np.uint8)
    images = Ragged(
        [lambda: flat], array=np.zeros(count, dtype=np.int64), offsets=np.cumsum(sizes) - sizes, shapes=shapes,
        channels=3, digests=[""] * count,
    )  # fmt: skip
    return Split(images=images, labels=torch.arange(count) % 5, index=torch.arange(count))


def batches(split: Split, policy: Augmentation, **more: Any) -> list[Batch]:
    return list(training_batches(split, batch_size=8, policy=policy, seed=3, epoch=1, framing=framed(16), **more))


SMOOTH = Augmentation(  # without thresholds, at which a rounding error becomes a step
    crop_scale=(0.3, 1), flip=True, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, blur_p=0.5, sharpness_p=0.5,
    erase_p=0.3,
)  # fmt: skip
PLAIN = Augmentation(crop_padding=0.125, flip=True)
MIXTURES = {"none": {}, "mixup": {"mixup": 0.4}, "cutmix": {"cutmix": 1.0}, "both": {"mixup": 1.0, "cutmix": 1.0}}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("split", [one_size(), many_sizes()], ids=["one size", "many sizes"])
def test_all_ranks_together_make_the_batch_of_one_process(split: Split, ranks: int, mixture: str):
    # The last batch of 18 has 2 samples, so that the last of three ranks has none.
    policies = [dataclasses.replace(SMOOTH, **MIXTURES[mixture])]
    if isinstance(split.images, Tensor):
        policies.append(dataclasses.replace(PLAIN, **MIXTURES[mixture]))
    for policy in policies:
        whole = batches(split, policy)
        parts = [batches(split, policy, rank=rank, world_size=ranks) for rank in range(ranks)]
        assert [len(batch.labels) for batch in whole] == [8, 8, 2]
        for step, batch in enumerate(whole):
            assert batch.step == step
            for rank in range(ranks):
                part, own = parts[rank][step], slice(rank, None, ranks)
                assert part.step == step
                # Those that stand in where a share has less than two are other ranks', and count for nothing.
                count = len(batch.labels[own])
                assert (part.own, part.borrowed) == (count, max(0, 2 - count) if ranks > 1 else 0)
                assert torch.equal(part.labels[:count], batch.labels[own])
                assert part.images[:count].shape == batch.images[own].shape
                if count:
                    assert (part.images[:count].float() - batch.images[own].float()).abs().max() < 0.01
                if batch.mix_ratios is None or batch.partner_labels is None:
                    assert mixture == "none"
                    assert part.mix_ratios is part.partner_labels is None
                else:
                    assert part.mix_ratios is not None
                    assert part.partner_labels is not None
                    assert torch.equal(part.mix_ratios[:count], batch.mix_ratios[own])
                    assert torch.equal(part.partner_labels[:count], batch.partner_labels[own])


def test_a_mixed_batch_has_the_labels_and_shares_of_its_pixels():
    # Every image is the square of its label, so that its pixels tell what it was made of.
    values = torch.tensor([0, 10, 40, 90, 160], dtype=torch.uint8)
    labels = torch.arange(40) % 5
    images = values[labels][:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    split = Split(images=images, labels=labels, index=torch.arange(40))
    for policy in (dataclasses.replace(OFF, mixup=1.0), dataclasses.replace(OFF, cutmix=1.0)):
        for batch in batches(split, policy):
            assert batch.partner_labels is not None
            assert batch.mix_ratios is not None
            assert batch.mix_ratios.dtype == torch.float32
            own, other = values[batch.labels].float(), values[batch.partner_labels].float()
            expected = batch.mix_ratios * own + (1 - batch.mix_ratios) * other
            torch.testing.assert_close(batch.images.float().mean((1, 2, 3)), expected, atol=0.01, rtol=1e-4)
            assert (batch.partner_labels != batch.labels).any()


@pytest.mark.parametrize("split", [one_size(), many_sizes()], ids=["one size", "many sizes"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_resumed_in_its_middle_is_bit_equal_with_everything_on(split: Split, rank: int):
    policy = Augmentation(**FULL)
    whole = batches(split, policy, rank=rank, world_size=2)
    rest = batches(split, policy, rank=rank, world_size=2, first_step=1)
    assert [batch.step for batch in rest] == [1, 2]
    for ours, theirs in zip(rest, whole[1:], strict=True):
        for name in ("images", "labels", "partner_labels", "mix_ratios"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_epochs_and_seeds_differ():
    split, policy = one_size(), dataclasses.replace(SMOOTH, mixup=1)
    first, *others = (
        next(training_batches(split, batch_size=8, policy=policy, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    for other in others:
        assert not torch.equal(first.images, other.images)
        assert first.mix_ratios is not None
        assert other.mix_ratios is not None
        assert not torch.equal(first.mix_ratios, other.mix_ratios)


def test_each_worker_computes_with_one_thread():
    threads, barrier = torch.get_num_threads(), threading.Barrier(2)

    def ask(_: int) -> int:
        barrier.wait(timeout=60)  # so that each worker is asked
        return torch.get_num_threads()

    try:
        found = list(_workers(2).map(ask, range(2)))
    finally:
        torch.set_num_threads(threads)
    assert found == [1, 1]


def test_images_of_many_sizes_need_a_framing():
    with pytest.raises(ValueError, match="framing"):
        next(training_batches(many_sizes(), batch_size=8, policy=PLAIN, seed=0, epoch=0))
