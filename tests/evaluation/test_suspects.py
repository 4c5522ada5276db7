from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.evaluation.forward import answer_split, trained_on
from resnetlab.evaluation.suspects import suspect_labels, suspect_sheet
from resnetlab.models.resnet import ResNet
from resnetlab.weights.file import load


@pytest.fixture
def network(digits_run: Run) -> ResNet:
    return load(digits_run)


def relabeled(data: ImageData, split: str, positions: torch.Tensor, labels: torch.Tensor) -> ImageData:
    changed = data.split(split).labels.clone()
    changed[positions] = labels
    splits = {**data.splits, split: dataclasses.replace(data.split(split), labels=changed)}
    return dataclasses.replace(data, splits=splits)


def test_labels_made_wrong_are_on_top(network: ResNet, digits: ImageData):
    flipped = torch.arange(0, 360, 30)
    labels = (digits.split("test").labels[flipped] + 3) % 10
    suspects = suspect_labels(network, relabeled(digits, "test", flipped, labels), "test")
    found = set(suspects.index[:24].tolist()) & set(flipped.tolist())
    assert len(found) >= 9  # the network errs now and then, after four epochs
    assert suspects["likely"].sum() < len(suspects)
    assert suspects[suspects.index.isin(flipped.tolist())]["likely"].sum() >= 6


def test_the_score_is_the_margin_of_the_logits(network: ResNet, digits: ImageData):
    suspects = suspect_labels(network, digits, "test")
    preprocessing, _ = trained_on(network)
    probabilities = answer_split(network, digits, "test", preprocessing).logits.double().softmax(1).numpy()
    labels = digits.split("test").labels.numpy()
    own = probabilities[np.arange(360), labels]
    others = probabilities.copy()
    others[np.arange(360), labels] = -1
    margins = np.log(own) - np.log(others.max(1))
    assert 0 < len(suspects) == (margins < 0).sum()
    assert suspects["score"].to_numpy() == pytest.approx(margins[suspects.index], abs=1e-9)
    assert suspects["score"].is_monotonic_increasing
    assert (suspects["label"] != suspects["prediction"]).all()
    assert suspects["index"].tolist() == digits.split("test").index[suspects.index.tolist()].tolist()
    calibrated = (torch.from_numpy(np.log(probabilities)) / network.temperature).softmax(1).numpy()
    own = calibrated[np.arange(360), labels]
    usual = np.array([own[labels == label].mean() for label in range(10)])
    assert (suspects["likely"] == (suspects["confidence"] >= usual[suspects["prediction"].astype(int)])).all()
    images = evaluate_split(network, digits, "test").per_image
    ranked = images.sort_values("suspicion", ascending=False, kind="stable")
    assert ranked.index[: len(suspects)].tolist() == suspects.index.tolist()
    assert (ranked["suspicion"].iloc[len(suspects) :] < 0).all()
    assert list(suspects) == [
        "index", "label", "prediction", "confidence", "label_probability", "score", "likely",
    ]  # fmt: skip


def test_the_order_of_the_classes_does_not_matter(network: ResNet, digits: ImageData):
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    split = digits.split("test")
    other = dataclasses.replace(
        digits,
        class_names=tuple(digits.class_names[label] for label in order.tolist()),
        splits={"test": dataclasses.replace(split, labels=order.argsort()[split.labels])},
    )
    expected, got = suspect_labels(network, digits, "test"), suspect_labels(network, other, "test")
    assert got.equals(expected)


def test_a_class_that_nothing_is_labeled_with_is_never_likely(network: ResNet, digits: ImageData):
    eights = torch.nonzero(digits.split("test").labels == 8)[:, 0]
    suspects = suspect_labels(network, relabeled(digits, "test", eights, torch.tensor(1)), "test")
    assert (suspects["prediction"] == "8").any()
    assert not suspects[suspects["prediction"] == "8"]["likely"].any()


def test_other_classes_are_refused_in_the_words_of_evaluate(network: ResNet):
    images = torch.zeros(20, 8, 8, dtype=torch.uint8)
    data = load_data((images, ["cat", "dog"] * 10))
    with pytest.raises(UserError, match="'cat', 'dog'"):
        suspect_labels(network, data, "test")


def test_a_sheet_shows_the_first_of_them(network: ResNet, digits: ImageData):
    suspects = suspect_labels(network, digits, "train")
    assert len(suspects) == (~(evaluate_split(network, digits, "train").per_image.eval("label == prediction"))).sum()
    few, many = (suspect_sheet(digits, "train", suspects, count) for count in (2, 9))
    assert few.width == many.width
    assert many.height > few.height
