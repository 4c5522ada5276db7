"""Networks, runs, packs and files of weights that cannot be used: each is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY
from tests.facts import refuses

import resnetlab
from resnetlab.core.files import read_toml, write_toml
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit
from resnetlab.weights.tensors import read_tensors, write_tensors


def test_a_hook_that_changes_what_is_saved_is_refused(tmp_path: Path):
    def halve(_: torch.nn.Module, state: dict[str, torch.Tensor], *__: object) -> None:
        state.update({name: value / 2 for name, value in state.items() if name.startswith("fc.")})

    model = resnetlab.ResNet(TINY)
    model.register_state_dict_post_hook(halve)
    with refuses("fc.weight", "other values"):
        resnetlab.save(tmp_path / "model.safetensors", model)


def test_weights_of_a_hub_in_other_forms_are_explained(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with refuses("pytorch_model.bin.index.json", "model.safetensors", "save_file"):
        resnetlab.load_weights(resnetlab.ResNet(TINY), tmp_path)


@pytest.mark.parametrize("arguments", [{}, {"validation_fraction": "0.1", "test_fraction": 0.2}])
def test_a_pack_without_the_fractions_of_its_splits_is_refused(
    arguments: dict[str, object], image_folder: Path, tmp_path: Path
):
    resnetlab.pack(image_folder, tmp_path / "pack", image_size=8, workers=1)
    facts = json.loads((tmp_path / "pack" / "pack.json").read_text())
    (tmp_path / "pack" / "pack.json").write_text(json.dumps({**facts, "arguments": arguments}))
    with refuses("pack.json", "arguments.validation_fraction"):
        resnetlab.inspect_data(tmp_path / "pack")


def test_a_network_on_the_meta_device_is_refused(digits: ImageData, tmp_path: Path):
    with refuses("meta device"):
        fit(resnetlab.ResNet(TINY).to("meta"), digits, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes_than_the_evaluation_leave_their_parts_of_the_page_out(
    digits: ImageData, tmp_path: Path
):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=1, batch_size=512, quiet=True)
    tensors, description = read_tensors(run.weights)
    write_tensors(run.weights, tensors, {**description, "class_names": [f"number {number}" for number in range(10)]})
    assert "the weights have other classes" in resnetlab.write_report(run).read_text()


@pytest.mark.parametrize(("field", "value"), [("augment", 3), ("loss", "mse\x1b[31m"), ("lr", "0.1"), ("rates", [1])])
def test_a_recipe_of_wrong_types_is_named(field: str, value: object, tmp_path: Path, digits: ImageData):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=1, batch_size=512, quiet=True)
    settings = read_toml(run.path / "run.toml")
    settings["recipe"][field] = value
    write_toml(run.path / "run.toml", settings)
    with refuses("run.toml", f"recipe.{field}"):
        Run(run.path)
