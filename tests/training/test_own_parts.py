# pyright: reportArgumentType=false
"""Parts of a user's file: from the shell, in Python, in a study, and after a resume."""

from __future__ import annotations

import os
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.facts import refuses
from torch import nn

import resnetlab
from resnetlab.core.errors import Interrupted
from resnetlab.core.imports import forget_import
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.training.registration import REGISTRIES
from resnetlab.weights.tensors import read_tensors

OURS = Path(__file__).with_name("own_parts.py")
SETTINGS = (
    "loss=hinge", "optimizer=sign", "schedule=poly(power=1)", "augment.steps=['stripes(p=0.3)']",
    "model.activation=squared", "model.block=wide_pair", "model.norm=rms", "model.attention=mean_gate",
)  # fmt: skip
SET = [word for setting in SETTINGS for word in ("--set", setting)]
SHORT = ["--limit", 60, "--epochs", 2, "--batch-size", 16, "--lr", 0.002]


def forget() -> None:
    """Makes this process like a new one, which has imported nothing."""
    for registry in REGISTRIES.values():
        for name in registry.added:
            registry.remove(name)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Path]:
    """A copy of the user's file, as a file of theirs that nobody has imported yet."""
    path = tmp_path / "my_parts.py"
    shutil.copy(OURS, path)
    forget()
    yield path
    forget()
    forget_import(str(path))


@pytest.fixture
def few() -> ImageData:
    return resnetlab.load_data("digits", limit=60, limit_held_out=40)


def new_process(parts: Path) -> None:
    forget()
    forget_import(str(parts))


@pytest.mark.slow
def test_the_shell_uses_the_parts_of_a_file(parts: Path, tmp_path: Path, cli: Callable[..., tuple]):
    out = tmp_path / "run"
    train = ["train", "digits", "--model", "quick_resnet", *SHORT, *SET, "--out", out]
    code, _, said = cli(*train)
    assert (code, "resnetlab.register" in said, out.exists()) == (2, True, False)
    code, _, said = cli(*train, "--import", parts)
    assert code == 0, said
    assert "executing" in said
    assert f"IMAGES --import {parts}" in " ".join(said.split())
    assert f"--resume {out} --import {parts}" in Run(out).resume_command
    recorded = Run(out).settings
    assert [entry["file"] for entry in recorded["imports"]] == [str(parts)]
    assert (recorded["recipe"]["loss"], recorded["recipe"]["optimizer"]) == ("hinge", "sign")
    assert recorded["recipe"]["schedule"] == "poly(power=1)"
    assert recorded["recipe"]["augment"]["steps"] == ["stripes(p=0.3)"]
    assert recorded["recipe"]["label_smoothing"] == 0
    new_process(parts)
    for verb in (["evaluate", out, "--no-explore"], ["summary", out]):
        code, _, said = cli(*verb)
        words = " ".join(said.split())
        assert (code, f"--import {parts}" in words or "--import my_parts.py" in words) == (2, True), said
        assert "executing" not in said
        new_process(parts)
        assert cli(*verb, "--import", parts)[0] == 0
        new_process(parts)
    code, _, said = cli("export", out, "--to", "html", "--out", tmp_path / "page.html", "--import", parts)
    assert (code, "normalization 'rms'" in said, "--to onnx" in " ".join(said.split())) == (2, True, True), said
    new_process(parts)
    again = ["train", "--config", out, "--out", tmp_path / "again"]
    code, _, said = cli(*again)
    assert (code, f"--import {parts}" in " ".join(said.split())) == (2, True), said
    assert cli("train", "--import", parts, *again[1:])[0] == 0
    assert Run(tmp_path / "again").settings["recipe"] == recorded["recipe"]
    assert cli("train", "--config", tmp_path / "none")[0] == 2
    code, _, said = cli("list", "models", "quick_resnet", "--import", tmp_path / "missing.py")
    assert (code, "missing.py" in said) == (2, True)


def test_a_killed_run_resumes_exactly_with_its_import(parts: Path, few: ImageData, tmp_path: Path):
    resnetlab.import_parts(parts)
    settings = {
        "loss": "hinge", "optimizer": "sign", "schedule": "poly", "augment.steps": ["stripes"], "lr": 0.002,
        "epochs": 2, "batch_size": 16,
    }  # fmt: skip
    fields = {"activation": "squared", "block": "wide_pair", "norm": "rms", "attention": "mean_gate"}
    network = {"overrides": fields, "quiet": True}
    whole = resnetlab.fit("quick_resnet", few, out=tmp_path / "whole", **network, **settings)

    def die(state: resnetlab.training.callbacks.CallbackState) -> None:  # type: ignore[name-defined]
        if (state.epoch, state.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resnetlab.fit("quick_resnet", few, out=tmp_path / "run", on_step=die, **network, **settings)
    with pytest.raises(Interrupted, match=f"--resume .*run --import {parts}"):
        resnetlab.resume(tmp_path / "run", quiet=True, on_step=lambda state: os.kill(os.getpid(), signal.SIGINT))
    new_process(parts)
    with refuses(f"--import {parts}", "import_parts", "executes"):
        resnetlab.resume(tmp_path / "run", quiet=True)
    resnetlab.import_parts(parts)
    with pytest.warns(UserWarning, match="on_step"):
        run = resnetlab.resume(tmp_path / "run", quiet=True)
    assert_equal(run, whole)


def assert_equal(run: Run, whole: Run) -> None:
    expected, found = read_tensors(whole.weights)[0], read_tensors(run.weights)[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    columns = [name for name in run.history if name not in TIMING_COLUMNS]
    assert run.history[columns].equals(whole.history[columns])


def test_a_changed_file_is_reported_with_both_digests(parts: Path, few: ImageData, tmp_path: Path):
    resnetlab.import_parts(parts)
    config = ResNetConfig(block="wide_pair", depths=(1,), widths=(4,), stem="cifar", in_channels=1, num_classes=10)
    run = resnetlab.fit(config, few, out=tmp_path / "run", epochs=1, batch_size=16, quiet=True)
    before = run.settings["imports"][0]["sha256"]
    parts.write_text(parts.read_text().replace("2 * out", "3 * out"))
    resnetlab.import_parts(parts)
    with pytest.warns(UserWarning, match=f"{before[:12]}.*now"), refuses("layer1.0.conv1.weight"):
        resnetlab.load(run)


def test_functions_are_parts_without_being_registered(few: ImageData, tmp_path: Path, capfd: pytest.CaptureFixture):
    def doubled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 2 * nn.functional.cross_entropy(logits, labels, reduction="none")

    shown: list[int] = []

    def darker(images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        shown.append(len(images))
        return images / 2

    settings = {"epochs": 1, "batch_size": 16, "seed": 3}
    try:
        parts = {"loss": doubled, "augment": darker, "optimizer": torch.optim.RMSprop}
        run = resnetlab.fit("quick_resnet", few, out=tmp_path / "a", **parts, **settings)
        words = " ".join(capfd.readouterr().err.split())
        assert "resnetlab.register('loss', 'doubled', doubled)" in words
        recipe = run.settings["recipe"]
        assert (recipe["loss"], recipe["optimizer"], recipe["augment"]["steps"]) == ("doubled", "rmsprop", ["darker"])
        assert sum(shown) >= 60
        module = resnetlab.fit(
            "quick_resnet", few, out=tmp_path / "b", loss=nn.CrossEntropyLoss(), quiet=True, **settings
        )
        usual = resnetlab.fit("quick_resnet", few, out=tmp_path / "c", label_smoothing=0.0, quiet=True, **settings)
        assert_equal(module, usual)
        with refuses("loss", "name"):
            resnetlab.fit("quick_resnet", few, out=tmp_path / "d", loss=lambda logits, labels: logits, **settings)
        with refuses("one value per image", "(16,)"):

            def mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
                return nn.functional.cross_entropy(logits, labels)

            resnetlab.fit("quick_resnet", few, out=tmp_path / "e", loss=mean, **settings)
    finally:
        forget()


def test_a_study_compares_a_registered_activation(parts: Path, few: ImageData, tmp_path: Path):
    resnetlab.import_parts(parts)
    plan = {"images": 60, "epochs": 1}
    changes: dict[str, object] = {"recipe.loss": "hinge", "recipe.optimizer": "sign", "recipe.lr": 0.002}
    changes |= {"model.block": "wide_pair", "model.norm": "rms", "recipe.augment.steps": ["stripes(p=0.3)"]}
    setup = {"plan": plan, "seeds": 1, "out": tmp_path / "study", "quiet": True, "changes": changes}
    result = resnetlab.studies.activations(few, model="quick_resnet", **setup)
    assert "squared" in set(result.table["network"])
    settings = Run(tmp_path / "study" / "runs" / "squared-seed0").settings
    assert (settings["recipe"]["loss"], settings["model"]["config"]["block"]) == ("hinge", "wide_pair")
    assert settings["recipe"]["augment"]["steps"] == ["stripes(p=0.3)"]
    assert tomllib.loads((tmp_path / "study" / "study.toml").read_text())["changes"] == changes
