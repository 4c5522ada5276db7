"""The networks in the package: what their files hold, how they are found, and what their cards state."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.packaged import packaged_card, packaged_images, packaged_names, packaged_weights
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.evaluation.forward import trained_on
from resnetlab.exporting.examples import MEASURED, SHOWN, read_examples
from resnetlab.weights.tensors import read_header

ROOT = Path(__file__).parents[2]
FACTS = {"digits": (8, "3"), "fashion_mnist": (28, "Ankle boot")}


def weights_of(name):
    path = packaged_weights(name)
    assert path is not None
    return path


def examples_of(name):
    path = packaged_images(name)
    assert path is not None
    return read_examples(path)


def stated(name, pattern):
    """The number in a model card that a pattern names."""
    found = re.search(pattern, packaged_card(name))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", FACTS)
def test_a_packaged_network_knows_its_classes_images_and_temperature(name):
    network, (size, known) = resnetlab.load(name), FACTS[name]
    preprocessing, classes = trained_on(network)
    assert known in classes and len(classes) == 10
    assert (preprocessing.image_size, preprocessing.channels) == (size, 1)
    assert network.temperature != 1 and network.stopped_at is None
    assert not network.training and next(network.parameters()).dtype == torch.float32


def test_all_files_together_are_small_and_in_half_precision():
    assert set(FACTS) == set(packaged_names())
    folder = weights_of("digits").parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
    for name in packaged_names():
        kinds = {tensor.dtype for tensor in read_header(weights_of(name)).tensors}
        assert kinds == {"float16", "int64"}


def test_the_card_states_the_accuracy_of_the_file(digits):
    found = evaluate_split(resnetlab.load("digits"), digits).summary
    assert (
        f"{100 * found['top1']:.1f}" == stated("digits", r"([\d.]+) % of the 360 test images")
        and found["top1"] >= 0.985
    )


@pytest.mark.parametrize("name", FACTS)
def test_the_images_in_the_package_show_mistakes_too(name):
    examples, network = examples_of(name), resnetlab.load(name)
    classes = trained_on(network)[1]
    assert len(examples.shown) == SHOWN and examples.measured == MEASURED
    answers = resnetlab.predict(network, examples.images)["prediction"].tolist()
    right = [answer == classes[label] for answer, label in zip(answers, examples.labels, strict=True)]
    assert [right[place] for place in examples.shown].count(False) == 2
    assert np.mean(right[:MEASURED]) >= 0.9


def test_the_card_of_fashion_mnist_states_at_least_93_percent():
    assert float(stated("fashion_mnist", r"([\d.]+) % of the 10,000 test images")) >= 93


def test_a_packaged_network_predicts_and_explains_in_the_shell(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples, network = examples_of("fashion_mnist"), resnetlab.load("fashion_mnist")
    assert isinstance(network, resnetlab.ResNet)
    Image.fromarray(examples.images[examples.shown[0]][..., 0]).save("image.png")
    code, out, err = cli("predict", "fashion_mnist", "image.png")
    assert code == 0 and trained_on(network)[1][examples.labels[examples.shown[0]]] in out, err
    code, out, err = cli("summary", "digits")
    assert code == 0 and "float16" in out, err
    batch = torch.from_numpy(examples.images[:2].transpose(0, 3, 1, 2).copy())
    assert len(resnetlab.class_activation(network, batch).maps) == 2


def test_a_path_with_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = resnetlab.create_model("resnet20", num_classes=3)
    network.class_names = ("a", "b", "c")
    resnetlab.save("digits", network)
    assert resnetlab.load("digits").class_names == ("a", "b", "c")
    Path("fashion_mnist").mkdir()
    with pytest.raises(UserError, match=r"run\.toml"):
        resnetlab.load("fashion_mnist")
    with pytest.raises(UserError, match="digits"):
        resnetlab.load("no-such-network")


def test_it_evaluates_and_starts_other_trainings(digits, cli):
    found = resnetlab.evaluate("digits").summary
    assert (found["split"], found["n"]) == ("test", len(digits.split("test")))
    assert found["top1"] >= 0.985 and resnetlab.evaluate("digits", digits).summary == found
    code, out, err = cli("evaluate", "digits", "--split", "validation")
    assert code == 0 and "144" in out, err
    code, out, err = cli("evaluate", "digits", "--no-explore")
    assert code == 2 and "--explore" in err
    fresh = resnetlab.create_model("resnet20", in_channels=1, pretrained="digits")
    assert fresh.class_names == digits.class_names
