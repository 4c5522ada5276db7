from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from resnetlab.core.errors import UserError
from resnetlab.data.load import load_data
from resnetlab.data.sources.arrays import check_arrays


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def train(images: object, labels: object, class_names=None) -> tuple[torch.Tensor, torch.Tensor]:
    return check_arrays((images, labels), class_names, "mine").splits["train"]


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ((4, 5, 6), None),
        ((4, 5, 6, 1), (0, 3, 1, 2)),
        ((4, 1, 5, 6), None),
        ((4, 5, 6, 3), (0, 3, 1, 2)),
        ((4, 3, 5, 6), None),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
def test_images_of_every_layout_and_range_become_the_same(given, order, as_tensor: bool, dtype: str):
    original = pixels(*given)
    images = original if dtype == "uint8" else (original / 255).astype(dtype)
    if as_tensor:
        images = torch.from_numpy(images.astype(images.dtype.newbyteorder("=")))
    found, labels = train(images, [0, 1, 0, 1])
    expected = original[:, None] if len(given) == 3 else original.transpose(order or range(4))
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 0, 1])


def test_splits_names_and_mirrors():
    arrays = {"test": (pixels(1, 4, 6), [1]), "val": (pixels(2, 4, 6), [0, 1]), "train": (pixels(3, 4, 6), [1, 0, 1])}
    source = check_arrays(arrays, None, "mine")
    assert {split: tuple(images.shape) for split, (images, _) in source.splits.items()} == {
        "train": (3, 1, 4, 6), "validation": (2, 1, 4, 6), "test": (1, 1, 4, 6),
    }  # fmt: skip
    assert list(source.splits) == ["train", "validation", "test"]
    assert (source.name, source.class_names, source.mirrors) == ("mine", ("0", "1"), False)
    assert check_arrays(arrays, ["cat", "dog"], "mine").class_names == ("cat", "dog")


def test_a_part_is_shown_of_images_that_are_held_out():
    arrays = {"train": (pixels(4, 20, 30), [0, 1, 0, 1]), "test": (pixels(3, 20, 30), [0, 1, 0])}
    whole, part = (load_data(arrays, image_size=16, validation_fraction=0, crop_pct=share) for share in (1, 0.5))
    given = torch.from_numpy(pixels(3, 20, 30))[:, None]
    for data in (whole, part):
        assert torch.equal(data.squares("test"), data.preprocessing.squares(given))
        assert torch.equal(data.split("train").images, whole.squares("train"))
    assert not torch.equal(part.squares("test"), whole.squares("test"))
    assert torch.equal(part.squares("train"), part.preprocessing.squares(whole.squares("train")))


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, lambda names: np.array(names, dtype=object)])
def test_names_are_labels(make):
    source = check_arrays((pixels(3, 4, 4), make(["dog", "cat", "dog"])), None, "mine")
    assert source.class_names == ("cat", "dog")
    assert source.splits["train"][1].tolist() == [1, 0, 1]
    assert train(pixels(3, 4, 4), make(["dog", "cat", "dog"]), ["dog", "owl", "cat"])[1].tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    "labels",
    [
        (1, 0, 1),
        np.array([1, 0, 1], dtype=np.uint16),
        torch.tensor([1, 0, 1], dtype=torch.int32),
        list(torch.tensor([1, 0, 1])),
        list(np.array([1, 0, 1])),
        pd.Series([1, 0, 1], index=[7, 8, 9]),
    ],
)
def test_integers_of_every_kind_are_labels(labels):
    assert train(pixels(3, 4, 4), labels)[1].tolist() == [1, 0, 1]


def test_the_users_arrays_are_neither_changed_nor_shared():
    images, labels = pixels(3, 1, 4, 4), np.array([0, 1, 0])
    images.flags.writeable = False
    tensor = torch.from_numpy(pixels(3, 1, 4, 4))
    for given in (images, tensor):
        before = np.asarray(given).copy()
        found, numbers = train(given, labels)
        found.zero_()
        numbers.zero_()
        assert np.array_equal(np.asarray(given), before)
        assert labels.tolist() == [0, 1, 0]


def test_a_tensor_that_wants_gradients_or_is_bfloat16_is_taken():
    images = torch.rand(2, 4, 4, requires_grad=True)
    assert torch.equal(train(images, [0, 1])[0][:, 0], (images.detach() * 255).round().to(torch.uint8))
    assert train(torch.ones(2, 4, 4, dtype=torch.bfloat16), [0, 1])[0].min() == 255


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pixels(2, 4), r"must have the shape \(N, H, W\), .* with C 1 or 3; \(2, 4\) fits none of them"),
        (pixels(2, 4, 5, 2), r"\(2, 4, 5, 2\) fits none of them"),
        (pixels(2, 3, 5, 1), r"\(2, 3, 5, 1\) fits both \(N, C, H, W\) and \(N, H, W, C\)"),
        (pixels(2, 1, 4, 5, 6), "fits none of them"),
        (pixels(0, 4, 4), r"the train images are empty: their shape is \(0, 4, 4\)"),
        (pixels(2, 4, 4).astype(np.int64), r"must be uint8, or float in \[0, 1\], got int64\. Convert"),
        (np.zeros((2, 4, 4), dtype=bool), "got bool"),
        (pixels(2, 4, 4).astype(np.float32), r"float with values from .* to 2.*must be in \[0, 1\]\. Undo their norm"),
        (np.full((2, 4, 4), -0.5), "float with values from -0.5 to -0.5"),
        (np.full((2, 4, 4), np.inf), "with values from inf to inf"),
        (np.full((2, 4, 4), np.nan), "the train images contain NaN"),
        ([[[0.5]], [[0.5]]], "the train images must be a numpy array or a torch tensor, got list"),
        (torch.rand(2, 4, 4).to_sparse(), "train images .*[Ss]parse.* dense"),
    ],
)
def test_images_of_another_form_are_refused(images, words: str):
    with pytest.raises(UserError, match=words):
        train(images, [0, 1])


@pytest.mark.parametrize(
    ("labels", "class_names", "words"),
    [
        ([0, 1], None, r"\b3 train images.*train labels.*\(2,\)"),
        (np.eye(3, dtype=int), None, r"have the shape \(3, 3\)"),
        ([0, -1, 1], None, "the train labels must be integers from 0; label 1 is -1"),
        ([0, 2**40, 1], None, "label 1 is 1099511627776"),
        (np.array([0, 2**64 - 1, 1], dtype=np.uint64), None, "label 1 is 18446744073709551615"),
        (np.array([0.0, 1.0, 1.0]), None, "train labels .*got float64"),
        ([0.0, 1.0, 1.0], None, r"must be all integers or all names, got 0\.0 among them"),
        ([True, False, True], None, "got True among them"),
        (np.array([True, False, True]), None, "got bool"),
        ([0, "a", 1], None, "got 'a' among them"),
        (np.array(["a", None, "b"], dtype=object), None, "got object"),
        (7, None, "must be a numpy array or a torch tensor, got int"),
        ([0, 1, 2], ["a", "b"], r"labels .*up to 2\b.*\b2 class_names"),
        ([1, 2, 3], None, r"up to 3\b.*label 0\b.*class_names"),
        ([0, 1, 2_000_000_000], None, r"up to 2000000000\b.*label 2\b"),
        (["a", "b", "dgo"], ["a", "b", "dog"], r"the labels contain 'dgo', which is not .*Did you mean 'dog'\?"),
        ([0, 1, 1], "ab", "class_names must be a sequence of names"),
    ],
)
def test_labels_of_another_form_are_refused(labels, class_names, words: str):
    with pytest.raises(UserError, match=words):
        train(pixels(3, 4, 4), labels, class_names)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"test": (pixels(1, 4, 4), [0])}, r"split train\b.*\bgot test\b"),
        ({}, r"split train\b.*\bgot no\b"),
        ({"trian": (pixels(1, 4, 4), [0])}, r"unknown split 'trian'\. Did you mean 'train'\?"),
        ({"val": (pixels(1, 4, 4), [0]), "validation": (pixels(1, 4, 4), [0])}, r"\bval\b.*\bvalidation\b"),
        (pixels(2, 4, 4), r"the train data must be \(images, labels\), got a value of ndarray"),
        ((pixels(2, 4, 4),), "got a value of 1 parts"),
        (
            {"train": (pixels(1, 4, 4), [0]), "test": (pixels(1, 4, 5), [0])},
            r"the test images have the shape \(1, 4, 5\) \(C, H, W\) and the train images \(1, 4, 4\)",
        ),
        (
            {"train": (pixels(1, 4, 4), [0]), "val": (pixels(1, 4, 4), [1])},
            "the validation labels contain 1, which no train",
        ),
        ({"train": (pixels(1, 4, 4), ["a"]), "test": (pixels(1, 4, 4), [0])}, "names as labels.*integers"),
    ],
)
def test_splits_that_do_not_fit_are_refused(value, words: str):
    with pytest.raises(UserError, match=words):
        check_arrays(value, None, "mine")
