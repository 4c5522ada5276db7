from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from resnetlab.core.errors import UserError
from resnetlab.data.splits import draw_splits, limited, of_each_class


def drawn_counts(
    counts: dict[str, int], validation_fraction: float = 0.1, test_fraction: float = 0.2
) -> tuple[dict[str, list[int]], list[str]]:
    """How many images of each class the drawn splits have, and the warnings."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts.values())))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = draw_splits(
            {"train": labels},
            list(counts),
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            seed=0,
        )
    positions = torch.cat([part.positions for part in drawn.values()]).sort().values
    assert positions.tolist() == list(range(len(labels)))  # every image once
    return {
        name: torch.bincount(labels[part.positions], minlength=len(counts)).tolist() for name, part in drawn.items()
    }, [str(warning.message) for warning in caught]


def each(classes: int, images: int) -> dict[str, int]:
    return {f"class {number:03}": images for number in range(classes)}


@pytest.mark.parametrize(
    ("counts", "train", "validation", "test"),
    [
        (each(12, 10), 7, 1, 2),
        (each(5, 10), 7, 1, 2),
        (each(3, 8), 5, 1, 2),
        (each(40, 3), 1, 1, 1),
    ],
)
def test_few_images_a_class_give_every_split_its_share(counts: dict, train: int, validation: int, test: int):
    found, said = drawn_counts(counts)
    for name, share in (("train", train), ("validation", validation), ("test", test)):
        assert set(found[name]) <= {share - 1, share, share + 1}
        assert min(found[name]) >= 1
    assert not said


def test_a_hundred_classes_of_12_have_every_class_in_every_split():
    found, said = drawn_counts(each(100, 12))
    assert all(min(counts) >= 1 for counts in found.values())
    assert [sum(found[name]) for name in ("train", "validation", "test")] == [860, 100, 240]
    assert not said


def test_positions_are_separated_by_class_in_their_order():
    labels, order = np.array([1, 0, 1, 3, 0]), np.array([4, 2, 1, 0])
    assert [own.tolist() for own in of_each_class(labels, order, 4)] == [[4, 1], [2, 0], [], []]


def test_fewer_images_than_classes_are_drawn_only_without_an_option():
    labels = np.arange(30)
    assert len(set(limited(labels, 30, 7, 0, option=None).tolist())) == 7
    with pytest.raises(UserError, match=r"limit=7 .* 30"):
        limited(labels, 30, 7, 0)


def test_a_class_of_one_image_is_trained_on_and_named():
    found, said = drawn_counts({"a": 40, "b": 40, "c": 40, "d": 40, "rare": 1})
    assert [found[name][-1] for name in ("train", "validation", "test")] == [1, 0, 0]
    assert found["test"][:4] == [8] * 4
    assert [next(name for name in ("validation", "test") if name in text) for text in said] == ["test", "validation"]
    assert all("rare" in text and "'a'" not in text for text in said)


def test_a_rare_class_is_not_rounded_away():
    found, said = drawn_counts({"common": 1000, "rare": 3})
    assert [found[name][1] for name in ("train", "validation", "test")] == [1, 1, 1]
    assert not said
    found, said = drawn_counts({"common": 1000, "rare": 2})
    assert [found[name][1] for name in ("train", "validation", "test")] == [1, 0, 1]
    assert len(said) == 1
    assert "rare" in said[0]
    found, _ = drawn_counts({"common": 1000, "rare": 3}, test_fraction=0.9, validation_fraction=0)
    assert found["train"][1] >= 1


def test_single_images_are_all_trained_on_and_both_splits_are_said_to_be_missing():
    found, said = drawn_counts({"a": 1, "b": 1})
    assert found == {"train": [1, 1]}
    assert ["validation" in text for text in said] == [False, True]


def test_limits_of_a_split_that_lacks_classes():
    labels = {"train": torch.arange(6).repeat(10), "validation": torch.tensor([2, 2, 2, 4, 4, 4])}
    drawn = draw_splits(labels, "abcdef", validation_fraction=0, test_fraction=0, limits={"validation": 3}, seed=0)
    found = labels["validation"][drawn["validation"].positions]
    assert len(found) == 3
    assert set(found.tolist()) == {2, 4}
