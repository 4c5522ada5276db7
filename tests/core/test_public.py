"""The public names: where they are, that they are there, and what they cost."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import resnetlab

ROOT = Path(resnetlab.__file__).parent
SUBMODULES = ("scratch", "studies", "surgery", "weights")
FUNCTIONS = (
    "block", "check", "class_activation", "compare", "compare_answers", "compare_classes", "compare_seeds", "convert",
    "create_model", "diagnose", "differences", "disagreements", "draw_comparison", "embedding_map", "evaluate",
    "export", "find_lr", "fit", "fit_grid", "grad_cam", "import_parts", "inspect_data", "learn", "list_models", "load",
    "load_data", "load_weights", "neighbors", "occlusion", "overfit_one_batch", "pack", "predict", "register",
    "register_block", "resume", "save", "serve", "summarize", "unregister", "write_report",
)  # fmt: skip
CLASSES = (
    "Augmentation", "Convolution", "Interrupted", "Recipe", "ResNet", "ResNetConfig", "ResidualBlock", "Run",
    "UserError",
)  # fmt: skip


def test_all_names_are_there():
    assert sorted(resnetlab.__all__) == sorted([*SUBMODULES, *FUNCTIONS, *CLASSES])
    assert set(resnetlab.__all__) <= set(dir(resnetlab))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_and_typed(name: str):
    function = getattr(resnetlab, name)
    assert inspect.isfunction(function)
    assert function.__name__ == name
    assert inspect.getdoc(function)
    parameters = inspect.signature(function).parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_documented(name: str):
    kind = getattr(resnetlab, name)
    assert isinstance(kind, type)
    assert (kind.__name__, bool(kind.__doc__)) == (name, True)


@pytest.mark.parametrize("name", SUBMODULES)
def test_a_submodule_lists_its_names(name: str):
    module = getattr(resnetlab, name)
    assert isinstance(module, ModuleType)
    assert all(hasattr(module, public) for public in module.__all__)


def test_no_function_has_the_name_of_a_module():
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & {*FUNCTIONS, *CLASSES}


def test_type_checkers_see_every_name():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    seen = {alias.name for node in imports for alias in node.names if (node.module or "").startswith("resnetlab")}
    assert seen == set(resnetlab.__all__)


def test_importing_costs_nothing_heavy():
    code = (
        "import sys, resnetlab\n"
        "resnetlab.UserError, resnetlab.Interrupted\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="fitt"):
        _ = resnetlab.fitt  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "fields", "shape"),
    [
        ("basic", {}, (4, 6, 3, 3)),
        ("basic", {"stride": 1, "shortcut": "A"}, (4, 6, 6, 6)),
        ("basic", {"conv_bias": "all", "shortcut_norm": False}, (4, 6, 3, 3)),
        (
            "basic",
            {"preactivation": True, "activation": "gelu", "drop_path": 0.1, "drop_block": (0.1, 2)},
            (4, 6, 3, 3),
        ),
        ("basic", {"dilation": 2, "parts": "scratch", "shortcut": "none"}, (4, 6, 3, 3)),
        ("bottleneck", {"avg_down": True, "squeeze_excite": True, "zero_init_residual": True}, (4, 24, 3, 3)),
        ("bottleneck", {"group_width": 3, "bottleneck_multiplier": 0.5, "stride_on": "1x1"}, (4, 24, 3, 3)),
    ],
)
def test_a_block_has_its_shape_and_trains(kind: str, fields: dict, shape: tuple[int, ...]):
    torch.manual_seed(0)
    block = resnetlab.block(kind, in_channels=3, width=6, **{"stride": 2, **fields})
    outputs = block(torch.randn(4, 3, 6, 6))
    assert outputs.shape == shape
    outputs.square().sum().backward()
    gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_functions_load_what_they_are_given():
    assert sum(resnetlab.inspect_data("digits").splits["images"]) == 1797
    assert resnetlab.overfit_one_batch("quick_resnet", "digits", steps=1).images == 256


def test_a_block_equals_that_of_a_network():
    model = resnetlab.create_model("resnet20")
    alone = resnetlab.block("basic", in_channels=16, width=32, stride=2, shortcut="A")
    block = model.get_submodule("layer2.0")
    alone.load_state_dict(block.state_dict())
    images = torch.randn(2, 16, 8, 8)
    assert torch.equal(alone(images), block(images))


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"stem": "deep"}, ("'stem'",)),
        ({"shortcutt": "C"}, ("'shortcutt'", "'shortcut'")),
        ({"stride": 0}, ("stride", "got 0")),
        ({"groups": 2}, ("groups=2", "bottleneck")),
        ({"shortcut": "D"}, ("shortcut", "'D'")),
    ],
)
def test_mistakes_in_a_block_are_explained(fields: dict, facts: tuple[str, ...]):
    with pytest.raises(resnetlab.UserError) as error:
        resnetlab.block("basic", **{"in_channels": 3, "width": 6, **fields})
    assert [fact for fact in facts if fact not in str(error.value)] == []
