"""Networks of timm, trained by our loop."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tests.training.stepping import around_steps, before_step
from torch import nn

from resnetlab import load_data
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.surgery import freeze
from resnetlab.studies.lab import outside
from resnetlab.studies.lab.outside import HUB, OutsideConfig, load_encoder, outside_config, suited_machine
from resnetlab.studies.lab.outside_runs import is_outside, load_outside, train_outside
from resnetlab.studies.lab.plan import Cell, make_plan, seconds_per_image
from resnetlab.training.fit import resume
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.weights.file import load
from resnetlab.weights.tensors import read_tensors

NAME = "test_efficientnet"
GRAY = OutsideConfig(name=NAME, in_channels=1, num_classes=10)
COLOR = OutsideConfig(name=NAME, in_channels=3, num_classes=1000)
RECIPE = Recipe(name="study", epochs=2, batch_size=16, lr=0.05, clip_norm=1.0)
TWO_RATES = RECIPE.changed(rates={"encoder": 0.005})


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=60, limit_held_out=40, validation_fraction=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, few: ImageData) -> Run:
    out = tmp_path_factory.mktemp("outside") / "run"
    return train_outside(GRAY, few, recipe=TWO_RATES, out=out, seed=1)


def encoder(model: outside.OutsideNetwork) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.network.state_dict().items() if not name.startswith("classifier.")}


@pytest.mark.parametrize("name", [NAME, "test_resnet", "test_convnext", "test_vit", "test_nfnet", "resnetv2_18"])
def test_every_parameter_is_in_one_part(name: str):
    model = OutsideConfig(name=name, in_channels=3, num_classes=7).build()
    parts = model.sections()
    found = {part: [p for module in modules for p in module.parameters()] for part, modules in parts.items()}
    assert list(found) == ["encoder", "head"]
    assert sorted(map(id, found["encoder"] + found["head"])) == sorted(map(id, model.parameters()))
    assert [parameter.shape[0] for parameter in found["head"]] == [7, 7]


def test_logits_and_embedding_are_those_of_timm():
    model = GRAY.build(seed=3).eval()
    images = torch.randn(2, 1, 28, 28)
    logits, embedding = model(images, return_features=True)
    torch.testing.assert_close(logits, model.network(images))
    torch.testing.assert_close(model(images), logits)
    torch.testing.assert_close(model.network.classifier(embedding), logits)


def test_initial_weights_are_of_the_seed_alone():
    before = torch.get_rng_state()
    first, again, other = GRAY.build(seed=3), GRAY.build(seed=3), GRAY.build(seed=4)
    assert torch.equal(before, torch.get_rng_state())
    weights = [model.network.conv_stem.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_frozen_encoder_stays_as_it_is(few: ImageData, tmp_path: Path):
    run = train_outside(GRAY, few, recipe=RECIPE.changed(rates={"encoder": 0}), out=tmp_path / "run")
    begun, ended = GRAY.build(), load_outside(run)
    assert encoder(begun).keys() == encoder(ended).keys()
    assert all(torch.equal(value, encoder(ended)[name]) for name, value in encoder(begun).items())
    assert not torch.equal(begun.network.classifier.weight, ended.network.classifier.weight)
    tokens = freeze(OutsideConfig(name="test_vit", in_channels=3, num_classes=7).build(), "encoder")
    assert [name for name, parameter in tokens.named_parameters() if parameter.requires_grad] == [
        "network.head.weight", "network.head.bias",
    ]  # fmt: skip


def test_encoder_and_head_have_rates_of_their_own_in_every_step(few: ImageData, tmp_path: Path):
    model, seen = GRAY.build(), []

    def watched(step, training, batch):
        loss = step(training, batch)
        seen.append({group["name"]: group["lr"] for group in training.state.optimizer.param_groups})
        return loss

    with around_steps(watched):
        train_outside(GRAY, few, recipe=TWO_RATES, out=tmp_path / "run")
    assert len(seen) == 2 * 4
    for step, rates in enumerate(seen):
        lr = TWO_RATES.learning_rate(step, len(seen))
        assert rates == {
            "encoder": pytest.approx(0.1 * lr), "encoder scales and shifts": pytest.approx(0.1 * lr),
            "head": pytest.approx(lr), "head scales and shifts": pytest.approx(lr),
        }  # fmt: skip
    groups = build_optimizer(model, TWO_RATES).param_groups
    ids = {group["name"]: {id(parameter) for parameter in group["params"]} for group in groups}
    assert ids["head"] == {id(model.network.classifier.weight)}
    assert ids["head scales and shifts"] == {id(model.network.classifier.bias)}
    assert set.union(*ids.values()) == set(map(id, model.parameters()))


class DiedError(Exception):
    """The end of a process that could save nothing."""


@pytest.mark.parametrize("end", ["signal in the first epoch", "death in the second epoch"])
def test_a_training_that_was_stopped_ends_with_the_same_bits(end: str, few: ImageData, trained: Run, tmp_path: Path):
    out = tmp_path / "run"

    def die(training: Training) -> None:
        if end.startswith("signal"):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise DiedError

    how = {"recipe": TWO_RATES, "out": out, "seed": 1}
    with pytest.raises((Interrupted, DiedError)), before_step(3 if end.startswith("signal") else 7, die):
        train_outside(GRAY, few, **how)
    assert not Run(out).is_complete
    run = train_outside(GRAY, few, **how)
    whole, again = read_tensors(trained.weights)[0], read_tensors(run.weights)[0]
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    columns = [name for name in run.history if name not in TIMING_COLUMNS]
    assert run.history[columns].equals(trained.history[columns])
    assert run.summary == trained.summary


def test_a_run_has_what_other_runs_have(few: ImageData, trained: Run):
    assert is_outside(trained)
    assert trained.settings["model"] == {
        "name": f"timm/{NAME}", "library": "timm", "config": {"name": NAME, "in_channels": 1, "num_classes": 10},
    }  # fmt: skip
    assert trained.settings["recipe"]["rates"] == {"encoder": 0.005}
    assert trained.summary is not None
    assert (trained.summary["split"], trained.summary["n"]) == ("test", len(few.split("test")))
    names = {path.stem for path in trained.evaluation().iterdir()}
    assert {"summary", "per_class", "per_image", "embeddings"} <= names


def test_weights_come_back_and_are_timms_own(trained: Run, few: ImageData):
    model, tensors = load_outside(trained), load_file(trained.weights)
    assert not model.training
    assert (model.class_names, model.preprocessing) == (few.class_names, few.preprocessing)
    theirs = timm.create_model(NAME, in_chans=1, num_classes=10)
    theirs.load_state_dict(tensors)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(theirs.eval()(images), model(images))
    with pytest.raises(UserError, match="not a network"):
        load(trained)
    with pytest.raises(UserError, match=r"run\.toml has no field 'name'"):
        (trained.path / "evaluation" / "summary.json").rename(trained.path / "summary")
        try:
            resume(trained, data=few)
        finally:
            (trained.path / "summary").rename(trained.path / "evaluation" / "summary.json")


def test_a_run_gives_all_but_the_classifier_and_its_normalization(trained: Run, few: ImageData, tmp_path: Path):
    model, head = GRAY.build(seed=9), GRAY.build(seed=9).network.classifier.weight
    assert load_encoder(model, trained.path) == few.preprocessing
    assert all(torch.equal(value, encoder(load_outside(trained))[name]) for name, value in encoder(model).items())
    assert torch.equal(model.network.classifier.weight, head)
    other = load_data("digits", limit=30, limit_held_out=20, validation_fraction=0.0)
    run = train_outside(GRAY, other, recipe=RECIPE, out=tmp_path / "run", pretrained=trained.path)
    assert other.preprocessing != few.preprocessing
    assert load_outside(run).preprocessing == few.preprocessing
    assert run.settings["model"]["pretrained"] == str(trained.path)


@pytest.mark.parametrize("write", [save_file, torch.save])
def test_a_file_of_timms_is_fitted_to_gray_images(write, tmp_path: Path):
    theirs, model = COLOR.build(seed=5).network, GRAY.build()
    write(theirs.state_dict(), tmp_path / "weights")
    told = load_encoder(model, tmp_path / "weights")
    torch.testing.assert_close(model.network.conv_stem.weight, theirs.conv_stem.weight.sum(1, keepdim=True))
    assert torch.equal(model.network.blocks[0][0].conv.weight, theirs.blocks[0][0].conv.weight)
    assert told is not None
    assert (told.mean, told.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as timm says of its own


def test_weights_of_another_network_are_refused(tmp_path: Path):
    other = OutsideConfig(name="test_resnet", in_channels=3, num_classes=10).build().network
    save_file(other.state_dict(), tmp_path / "weights")
    model, before = GRAY.build(), GRAY.build().state_dict()
    words = r"weights does not fit test_efficientnet of timm before its classifier: \d+ tensors are missing, \d+ have"
    with pytest.raises(UserError, match=words) as refused:
        load_encoder(model, tmp_path / "weights")
    assert "missing:\n  conv_stem.weight" in str(refused.value)
    assert "too many:\n" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "weights")
    with pytest.raises(UserError, match="weights"):
        load_encoder(GRAY.build(), tmp_path / "weights")


def test_the_hub_has_timms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs, asked = COLOR.build(seed=5).network, []
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    monkeypatch.setattr(outside, "timm_weights", lambda name: asked.append(name) or (path, {}))
    model = GRAY.build()
    load_encoder(model, HUB)
    assert asked == ["test_efficientnet.r160_in1k"]
    assert torch.equal(model.network.blocks[0][0].conv.weight, theirs.blocks[0][0].conv.weight)


def test_without_a_network_the_file_of_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be got .* Download \S+/timm/test_efficientnet.r160_in1k/resolve/"):
        load_encoder(GRAY.build(), HUB)


def test_a_network_whose_weights_are_not_published_says_so():
    model = OutsideConfig(name="resnetv2_18", in_channels=1, num_classes=3).build()
    model.network.pretrained_cfg["hf_hub_id"] = None
    with pytest.raises(UserError, match=r"timm publishes no weights of resnetv2_18 on its hub\. Give a file"):
        load_encoder(model, HUB)


def test_names_are_timms():
    wanted = {"image_size": 28, "in_channels": 1, "num_classes": 10}
    assert outside_config(f"timm/{NAME}", **wanted) == outside_config(NAME, **wanted) == GRAY
    words = (
        r"unknown network of timm 'eficientnet_b0'\. Did you mean 'efficientnet_b0'\? Available: (\w+, ){5}"
        r"and [\d,]+ more that timm\.list_models\(\) lists\."
    )
    with pytest.raises(UserError, match=words):
        outside_config("eficientnet_b0", **wanted)
    with pytest.raises(UserError, match="unknown network of timm 'hf-hub:"):
        outside_config("hf-hub:somebody/something", **wanted)


def test_images_that_a_network_does_not_take_are_told():
    words = r"test_vit of timm does not take images of 1 channels and 28x28 pixels: .*patch size.*\. Choose another"
    with pytest.raises(UserError, match=words):
        outside_config("test_vit", image_size=28, in_channels=1, num_classes=10)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"needs the package timm, which is not installed\. Install it: pip install timm"
    ):
        outside_config(NAME, image_size=28, in_channels=1, num_classes=10)


def test_on_a_cpu_networks_of_timm_are_trained_in_float32():
    machine = Machine(device="cpu", precision="bfloat16", memory_format="contiguous", threads=2)
    expected = dataclasses.replace(machine, precision="float32", memory_format="channels_last")
    assert suited_machine(machine) == expected
    for other in ({"device": "cuda"}, {"precision": "float64"}):
        kept = dataclasses.replace(machine, **other)
        assert suited_machine(kept) == kept


def test_the_plan_measures_networks_of_timm(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=1)
    preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))
    before = torch.get_rng_state()
    assert seconds_per_image(GRAY, RECIPE, preprocessing, machine) > 0
    assert torch.equal(before, torch.get_rng_state())
    asked = []
    monkeypatch.setattr("resnetlab.studies.lab.plan.seconds_per_image", lambda config, *_: asked.append(config) or 0.01)
    cells = [Cell(name=f"{at}", network=GRAY, seed=at) for at in range(2)]
    limits = {"images": 100, "evaluated": 10, "minutes": 4, "may_leave_out": False}
    assert make_plan(cells, RECIPE, preprocessing, machine, **limits).epochs > 1
    assert asked == [GRAY]
