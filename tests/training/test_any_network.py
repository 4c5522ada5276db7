# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
"""One door for any network: ResNetLab's, timm's, and your own `nn.Module`."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

import resnetlab
from resnetlab import fit, load, load_data, load_weights, resume
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.storage.store import ImageData
from resnetlab.models.adapters import ModuleNetwork, TimmConfig, TimmNetwork, check_takes_images
from resnetlab.models.architectures import build, open_architecture, read_architecture
from resnetlab.models.network import Network
from resnetlab.models.surgery import freeze
from resnetlab.report.command import train_command
from resnetlab.report.mistakes import to_picture
from resnetlab.studies.lab.plan import Cell, make_plan, seconds_per_image
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import network_for, open_model, suited
from resnetlab.training.recipe import Recipe
from resnetlab.weights import inspect_weights, save
from resnetlab.weights.sources import TIMM_DEFAULT
from resnetlab.weights.tensors import read_tensors

NAME = "test_efficientnet"
GRAY = TimmConfig(name=NAME, in_channels=1, num_classes=10)
COLOR = TimmConfig(name=NAME, in_channels=3, num_classes=1000)
RECIPE = Recipe(name="study", epochs=2, batch_size=16, lr=0.05, clip_norm=1.0)
TWO_RATES = RECIPE.changed(rates={"encoder": 0.005})
KINDS = ("ours", "timm", "file", "object")
SOURCE = '''
from pathlib import Path
from parts_beside import block
from torch import nn

Path(__file__).with_name("executed").touch()


class Own(nn.Module):
    """Uses `view`, which channels_last would break."""

    def __init__(self, num_classes, in_channels, width=4):
        super().__init__()
        self.net = block(in_channels, width)
        self.classifier = nn.Linear(16 * width, num_classes)

    def forward(self, images):
        return self.classifier(self.net(images).view(len(images), -1))


def fixed():
    return Own(10, 3)


def not_a_network():
    return 3


class Two(Own):
    def forward(self, images):
        return super().forward(images)[:, :2]
'''
BESIDE = """
from torch import nn


def block(in_channels, width):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
"""


class Plain(nn.Module):
    """A module that tests pass as an object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).relu().flatten(1))


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_data("digits", limit=60, limit_held_out=40, validation_fraction=0.0)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(SOURCE)
    (tmp_path / "code" / "parts_beside.py").write_text(BESIDE)
    return f"{tmp_path / 'code' / 'own.py'}:Own"


@pytest.fixture(params=KINDS)
def network(request: pytest.FixtureRequest, own: str) -> tuple[str | nn.Module, Callable[[], str | nn.Module | None]]:
    """What `fit` gets as `model`, and what later verbs get."""
    return {
        "ours": ("quick_resnet", lambda: None),
        "timm": (f"timm:{NAME}", lambda: None),
        "file": (own, lambda: own),
        "object": (Plain(), Plain),
    }[request.param]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, few: ImageData) -> Run:
    out = tmp_path_factory.mktemp("outside") / "run"
    return fit(f"timm:{NAME}", few, recipe=TWO_RATES, out=out, seed=1, quiet=True)


def encoder(model: Network) -> dict[str, torch.Tensor]:
    tensors = model.saved_module.state_dict()
    return {name: value for name, value in tensors.items() if not name.startswith("classifier.")}


@pytest.mark.slow
def test_every_kind_trains_and_serves_every_verb(network, few: ImageData, tmp_path: Path):
    model, again = network
    run = fit(model, few, recipe=RECIPE, out=tmp_path / "run", quiet=True)
    loaded = load(run, model=again())
    assert not loaded.training
    assert (loaded.class_names, loaded.preprocessing) == (few.class_names, few.preprocessing)
    assert list(loaded.sections())[-1] == "head"
    evaluation = resnetlab.evaluate(run, few, model=again())
    assert evaluation.summary == {key: value for key, value in (run.summary or {}).items() if key != "schema"}
    assert evaluation.exploration is not None
    assert (evaluation.exploration.diagnostics is None) == (not loaded.blocks())
    table = resnetlab.predict(run, few.splits["test"].images[:3], model=again())
    assert table["prediction"].tolist() == evaluation.per_image["prediction"].tolist()[:3]
    page = resnetlab.write_report(run, few).read_text(encoding="utf-8")
    assert ('id="residual"' in page) == bool(loaded.blocks())
    assert ('href="#residual"' in page) == bool(loaded.blocks())
    assert resnetlab.evaluate(loaded, few).summary["top1"] == evaluation.summary["top1"]
    save(tmp_path / "copy.safetensors", loaded)
    copy = load(tmp_path / "copy.safetensors", model=again()).saved_module.state_dict()
    assert all(torch.equal(value, copy[name]) for name, value in loaded.saved_module.state_dict().items())
    assert len(inspect_weights(run).tensors) == len(copy)


@pytest.mark.parametrize("end", ["signal in the first epoch", "death in the second epoch"])
def test_every_kind_resumes_with_equal_bits(end: str, network, few: ImageData, tmp_path: Path):
    model, again = network

    def fresh() -> Network:
        torch.manual_seed(0)
        opened = Plain() if isinstance(model, nn.Module) else model
        return network_for(open_model(opened, {}), few, 0, {})

    whole, fragile = fit(fresh(), few, recipe=RECIPE, out=tmp_path / "whole", quiet=True), fresh()
    steps: list[int] = []

    def stop(module: nn.Module, *_) -> None:
        steps.append(1) if module.training else None
        if end.startswith("signal") and len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if end.startswith("death") and len(steps) == 6:
            raise DiedError

    hook = fragile.register_forward_hook(stop)
    with pytest.raises((Interrupted, DiedError)):
        fit(fragile, few, recipe=RECIPE, out=tmp_path / "run", quiet=True)
    hook.remove()
    assert not Run(tmp_path / "run").is_complete
    run = resume(tmp_path / "run", model=again(), data=few, quiet=True)
    expected, found = read_tensors(whole.weights)[0], read_tensors(run.weights)[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    columns = [name for name in run.history if name not in TIMING_COLUMNS]
    assert run.history[columns].equals(whole.history[columns])
    assert run.summary == whole.summary


class DiedError(Exception):
    """The end of a process that could save nothing."""


def test_your_file_is_executed_only_when_you_say_so(own: str, few: ImageData, tmp_path: Path, capfd):
    executed = Path(own.rpartition(":")[0]).with_name("executed")
    run = fit(own, few, recipe=RECIPE, out=tmp_path / "run", overrides={"width": 3}, quiet=True)
    assert executed.is_file()
    assert "executing" in capfd.readouterr().err
    recorded = run.settings["model"]["config"]
    assert (recorded["factory"], recorded["arguments"], len(recorded["sha256"])) == (own, {"width": 3}, 64)
    executed.unlink()
    image = few.splits["test"].images[:1]
    for verb in (load, resnetlab.evaluate, lambda run: resnetlab.predict(run, image), load_from(few)):
        with pytest.raises(UserError) as refused:
            verb(run)
        assert f"--model {own}" in str(refused.value)
    (run.evaluation() / "summary.json").rename(run.path / "summary.json")
    run.weights.rename(run.path / "weights")
    with pytest.raises(UserError, match="--model"):
        resume(run.path, data=few, quiet=True)
    (run.path / "weights").rename(run.weights)
    (run.path / "summary.json").rename(run.evaluation() / "summary.json")
    resnetlab.write_report(run, few)
    inspect_weights(run)
    assert not executed.exists()
    assert load(run, model=own).network.net[0].out_channels == 3
    assert executed.is_file()
    words = train_command(run.settings, mirrors=False)
    assert words is None or ["--model", own] in words


@pytest.mark.slow
def test_the_shell_takes_your_file(own: str, tmp_path: Path, cli: Callable[..., tuple]):
    out = tmp_path / "run"
    settings = ["--epochs", 1, "--limit", 60, "--set", "model.width=2", "--out", out, "--keep-checkpoints"]
    code, _, said = cli("train", "digits", "--model", own, *settings)
    assert code == 0, said
    assert "executing" in said
    image = tmp_path / "image.png"
    to_picture(load_data("digits", limit=10).splits["test"].images[0]).save(image)
    for verb in (("evaluate", out), ("predict", out, image), ("predict", out, image, "--similar", 2)):
        code, _, said = cli(*verb)
        assert (code, f"--model {own}" in " ".join(said.split())) == (2, True), said
        assert cli(*verb, "--model", own)[0] == 0
    (out / "model.safetensors").unlink()
    (out / "evaluation" / "summary.json").unlink()
    assert cli("train", "--resume", out)[0] == 2
    assert cli("train", "--resume", out, "--model", own)[0] == 0
    assert Run(out).summary is not None


def load_from(data: ImageData) -> Callable[[Run], Run]:
    def again(run: Run) -> Run:
        return fit("auto", data, pretrained=run, out=run.path.parent / "other", quiet=True)

    return again


def test_a_changed_file_is_reported(own: str, few: ImageData, tmp_path: Path):
    run = fit(own, few, recipe=RECIPE, out=tmp_path / "run", quiet=True)
    path = Path(own.rpartition(":")[0])
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.warns(UserWarning, match="differs"):
        load(run, model=own)
    path.write_text(path.read_text().replace("width=4", "width=5"))
    with pytest.warns(UserWarning, match="differs"), pytest.raises(UserError) as refused:
        load(run, model=own)
    assert "classifier.weight: (10, 64) in the file, (10, 80) in the network" in str(refused.value)


def test_a_package_gives_networks(few: ImageData, tmp_path: Path):
    color = load_data("digits", limit=40, limit_held_out=20, validation_fraction=0.0, channels=3)
    name = "torchvision.models:resnet18"  # it takes num_classes by **kwargs, and no in_channels
    run = fit(name, color, epochs=1, batch_size=20, out=tmp_path / "run", quiet=True)
    model = load(run, model=name)
    assert isinstance(model, ModuleNetwork)
    assert model.sections()["head"] == [model.network.fc]
    logits, embedding = model(torch.zeros(2, 3, 8, 8), return_features=True)
    assert (logits.shape, embedding.shape) == ((2, 10), (2, 512))
    with pytest.raises(UserError, match=r"channels"):
        fit(name, few, epochs=1, out=tmp_path / "gray", quiet=True)
    assert not (tmp_path / "gray").exists()


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("timm:eficientnet_b0", ("eficientnet_b0", "efficientnet_b0", "timm.list_models()")),
        ("timm:hf-hub:somebody/something", ("hf-hub:somebody/something",)),
        ("{file}:Owm", ("Owm", "'Own'")),
        ("{file}", ("--model", ":NAME")),
        ("nowhere.py:Net", ("nowhere.py",)),
        ("no_such_package:Net", ("no_such_package", "timm:NAME")),
        ("{file}:not_a_network", ("nn.Module", "int")),
        ("{file}:fixed", ("1 channel",)),
        ("{file}:Two", ("(N, 10)", "(2, 2)")),
        ("{file}:Path.home", ("nn.Module",)),
        ("quick_resnt", ("quick_resnet",)),
    ],
)
def test_wrong_networks_are_refused_before_training(name: str, facts: tuple[str, ...], own: str, few, tmp_path: Path):
    with pytest.raises(UserError) as refused:
        fit(name.format(file=own.rpartition(":")[0]), few, out=tmp_path / "run", quiet=True)
    assert all(fact in str(refused.value) for fact in facts), refused.value
    assert not (tmp_path / "run").exists()


def test_code_that_raises_is_a_mistake_of_the_user(tmp_path: Path, few: ImageData):
    (tmp_path / "bad.py").write_text("raise RuntimeError('no GPU')")
    with pytest.raises(UserError, match=r"bad\.py.*RuntimeError: no GPU"):
        fit(f"{tmp_path / 'bad.py'}:Net", few, quiet=True)


def test_an_object_is_trained_in_place_and_its_class_is_named(few: ImageData, tmp_path: Path):
    module = Plain()
    before = module.fc.weight.detach().clone()
    run = fit(module, few, recipe=RECIPE, out=tmp_path / "run", quiet=True)
    assert not torch.equal(module.fc.weight, before)
    with pytest.raises(UserError, match=r"Plain.*module itself"):
        load(run)
    assert torch.equal(load(run, model=Plain()).network.fc.weight, module.fc.weight)
    with pytest.raises(UserError, match="`model` is not needed"):
        load(fit("quick_resnet", few, epochs=1, out=tmp_path / "ours", quiet=True), model=Plain())


def test_a_module_without_a_known_head_has_one_section():
    model = build(open_architecture("torch.nn:Identity"))  # it ignores all arguments
    assert list(model.sections()) == ["head"]
    images = torch.randn(2, 3)
    assert all(torch.equal(found, images) for found in model(images, return_features=True))


def test_records_that_are_not_ours_are_refused():
    for record in ({"library": "keras"}, {"library": "timm"}, {"library": "module", "factory": "a:b", "callable": "c"}):
        with pytest.raises(UserError):
            read_architecture(record, "a file")


def test_your_weights_load_with_the_prefix_of_their_wrapper(own: str, tmp_path: Path):
    config = dataclasses.replace(open_architecture(own), in_channels=1, num_classes=10)
    first, second = build(config), build(config)
    torch.save({f"module.{name}": value for name, value in first.saved_module.state_dict().items()}, tmp_path / "w.pt")
    report = load_weights(second, tmp_path / "w.pt")
    assert not report.reinitialized
    assert torch.equal(second.network.net[0].weight, first.network.net[0].weight)


@pytest.mark.parametrize("name", [NAME, "test_resnet", "test_convnext", "test_vit", "test_nfnet", "resnetv2_18"])
def test_every_parameter_of_timms_is_in_one_section(name: str):
    model = build(TimmConfig(name=name, in_channels=3, num_classes=7))
    sections = model.sections()
    found = {section: [p for module in modules for p in module.parameters()] for section, modules in sections.items()}
    assert list(found) == ["encoder", "head"]
    assert sorted(map(id, found["encoder"] + found["head"])) == sorted(map(id, model.parameters()))
    assert [parameter.shape[0] for parameter in found["head"]] == [7, 7]


def test_logits_and_embedding_are_those_of_timm():
    model = build(GRAY).eval()
    images = torch.randn(2, 1, 28, 28)
    logits, embedding = model(images, return_features=True)
    torch.testing.assert_close(logits, model.network(images))
    torch.testing.assert_close(model(images), logits)
    torch.testing.assert_close(model.network.classifier(embedding), logits)


def test_a_frozen_encoder_does_not_change(few: ImageData, tmp_path: Path):
    before = build(GRAY)
    start = {name: value.clone() for name, value in encoder(before).items()}
    head = before.network.classifier.weight.detach().clone()
    run = fit(before, few, recipe=RECIPE.changed(rates={"encoder": 0}), out=tmp_path / "run", quiet=True)
    after = load(run)
    assert all(torch.equal(value, start[name]) for name, value in encoder(after).items())
    assert not torch.equal(head, after.network.classifier.weight)
    tokens = freeze(build(TimmConfig(name="test_vit", in_channels=3, num_classes=7)), "encoder")
    trained = [name for name, parameter in tokens.named_parameters() if parameter.requires_grad]
    assert trained == ["network.head.weight", "network.head.bias"]


def test_encoder_and_head_have_their_own_learning_rates():
    model = build(GRAY)
    groups = build_optimizer(model, TWO_RATES).param_groups
    assert {group["name"]: group["scale"] for group in groups} == {
        "encoder": pytest.approx(0.1), "encoder scales and shifts": pytest.approx(0.1),
        "head": 1, "head scales and shifts": 1,
    }  # fmt: skip
    ids = {group["name"]: {id(parameter) for parameter in group["params"]} for group in groups}
    assert ids["head"] == {id(model.network.classifier.weight)}
    assert ids["head scales and shifts"] == {id(model.network.classifier.bias)}
    assert set.union(*ids.values()) == set(map(id, model.parameters()))


def test_timm_reads_the_weights_of_a_run(trained: Run):
    assert trained.settings["model"]["name"] == f"timm:{NAME}"
    assert trained.settings["model"]["config"] == {
        "library": "timm", "name": NAME, "in_channels": 1, "num_classes": 10,
    }  # fmt: skip
    model = load(trained)
    assert isinstance(model, TimmNetwork)
    theirs = timm.create_model(NAME, in_chans=1, num_classes=10)
    theirs.load_state_dict(load_file(trained.weights))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(theirs.eval()(images), model(images))
    words = train_command(trained.settings, mirrors=False)
    assert words is None or ["--model", f"timm:{NAME}"] in words


def test_a_run_of_timms_is_pretrained_weights(trained: Run, few: ImageData, tmp_path: Path):
    model = build(GRAY)
    report = load_weights(model, trained, class_names=tuple("abcdefghij"))
    assert report.reinitialized == ["classifier.weight", "classifier.bias"]
    assert model.preprocessing == few.preprocessing
    assert all(torch.equal(value, encoder(load(trained))[name]) for name, value in encoder(model).items())
    other = load_data("digits", limit=30, limit_held_out=20, validation_fraction=0.0)
    run = fit("auto", other, recipe=RECIPE, pretrained=trained, out=tmp_path / "run", quiet=True)
    assert other.preprocessing != few.preprocessing
    assert isinstance(load(run), TimmNetwork)
    assert load(run).preprocessing == few.preprocessing
    assert run.settings["model"]["pretrained"] == str(trained.weights)
    assert run.settings["machine"]["precision"] == "float32"


@pytest.mark.parametrize("write", [save_file, torch.save])
def test_a_file_of_timms_is_adapted_to_gray_images(write, tmp_path: Path):
    theirs, model = build(COLOR).saved_module, build(GRAY)
    write(theirs.state_dict(), tmp_path / "weights")
    report = load_weights(model, tmp_path / "weights")
    assert report.adapted == ["conv_stem.weight"]
    torch.testing.assert_close(model.network.conv_stem.weight, theirs.conv_stem.weight.sum(1, keepdim=True))
    assert torch.equal(model.network.blocks[0][0].conv.weight, theirs.blocks[0][0].conv.weight)
    assert model.preprocessing is not None  # as timm says of its own weights
    assert model.preprocessing.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    other = build(TimmConfig(name="test_resnet", in_channels=3, num_classes=10)).saved_module
    save_file(other.state_dict(), tmp_path / "weights")
    model = build(GRAY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="another network") as refused:
        load_weights(model, tmp_path / "weights")
    assert "conv_stem.weight" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "weights")
    with pytest.raises(UserError, match="weights"):
        load_weights(build(GRAY), tmp_path / "weights")


def test_without_a_connection_the_file_of_timms_default_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"/timm/test_efficientnet\.r160_in1k/resolve/"):
        load_weights(build(GRAY), TIMM_DEFAULT)
    with pytest.raises(UserError, match="--model timm:NAME"):
        load_weights(resnetlab.create_model("quick_resnet"), TIMM_DEFAULT)


@pytest.mark.slow
def test_a_missing_package_is_named():
    code = "import sys; sys.modules['timm'] = None\nimport resnetlab\nresnetlab.fit('timm:resnet18', 'digits')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install timm" in done.stderr


def test_images_that_a_network_does_not_take_are_named():
    model = build(TimmConfig(name="test_vit", in_channels=1, num_classes=10))
    with pytest.raises(UserError, match=r"timm:test_vit .*1 channel and 28x28"):
        check_takes_images(model, 28)


def test_on_a_cpu_other_networks_are_trained_in_float32(own: str):
    machine = Machine(device="cpu", precision="bfloat16", memory_format="channels_last", threads=2)
    assert suited(machine, resnetlab.ResNetConfig()) == machine
    assert suited(machine, GRAY) == dataclasses.replace(machine, precision="float32")
    assert suited(machine, open_architecture(own)) == dataclasses.replace(
        machine, precision="float32", memory_format="contiguous"
    )
    for other in ({"device": "cuda"}, {"precision": "float64"}):
        kept = dataclasses.replace(machine, **other)
        assert suited(kept, GRAY) == kept


def test_the_plan_of_a_study_measures_networks_of_timm():
    machine = Machine(device="cpu", precision="float32", memory_format="contiguous", threads=1)
    preprocessing = Preprocessing(image_size=8, channels=1, mean=(0.5,), std=(0.25,))
    before = torch.get_rng_state()
    assert seconds_per_image(GRAY, RECIPE, preprocessing, machine) > 0
    assert torch.equal(before, torch.get_rng_state())
    cells = [Cell(name=f"{at}", network=GRAY, seed=at) for at in range(2)]
    limits = {"images": 100, "evaluated": 10, "minutes": 100, "may_leave_out": False}
    assert make_plan(cells, RECIPE, preprocessing, machine, **limits).epochs > 1
