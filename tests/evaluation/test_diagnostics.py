# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.conftest import TINY
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import Diagnostics, diagnose, response_layers, sample
from resnetlab.evaluation.forward import answer
from resnetlab.evaluation.metrics import overall
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet, zero_branch
from resnetlab.models.surgery import fold_batch_norm, without_block
from resnetlab.weights.file import load

DEEPER = dataclasses.replace(TINY, depths=(2, 3))


def network(config: ResNetConfig) -> ResNet:
    """One whose statistics and biases are those of no fresh network."""
    torch.manual_seed(3)
    model = ResNet(config)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.normal_(module.get_parameter("bias"))
    model.class_names = tuple("abcdefghij")
    model.preprocessing = Preprocessing(
        image_size=8, channels=config.in_channels, mean=(0.4,) * config.in_channels, std=(0.3,) * config.in_channels
    )
    return model


def pictures(count: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=draws)
    return images, torch.randint(0, 10, (count,), generator=draws)


def normalized(model: ResNet, images: Tensor) -> Tensor:
    assert model.preprocessing is not None
    return model.preprocessing.normalize(images)


@pytest.mark.parametrize(
    "config",
    [
        DEEPER,
        dataclasses.replace(DEEPER, preactivation=True, shortcut="B"),
        dataclasses.replace(DEEPER, block="bottleneck", shortcut="C"),
        dataclasses.replace(DEEPER, parts="scratch"),
    ],
    ids=["post-activation", "pre-activation", "bottleneck", "scratch"],
)
def test_figures_equal_a_computation_by_hand(config: ResNetConfig):
    model = network(config).eval()
    images, labels = pictures(70)  # more than a batch
    found = diagnose(model, images, labels)
    with torch.no_grad():
        taps = {name: tap.double() for name, tap in model.features(normalized(model, images)).items()}
    assert list(found.blocks["block"]) == [name for name, _ in model.blocks()]
    for row in found.blocks.to_dict("records"):
        branch, shortcut, total = (taps[f"{row['block']}.{part}"] for part in ("branch", "shortcut", "sum"))
        ratios = branch.flatten(1).norm(dim=1) / shortcut.flatten(1).norm(dim=1)
        assert row["ratio"] == pytest.approx(float(ratios.mean()), rel=1e-5)
        cosines = nn.functional.cosine_similarity(branch.flatten(1), shortcut.flatten(1))
        assert row["cosine"] == pytest.approx(float(cosines.mean()), abs=1e-5)
        centered = [part - part.mean((0, 2, 3), keepdim=True) for part in (branch, total)]
        share = (centered[0] * centered[1]).sum() / centered[1].square().sum()
        assert row["variance_share"] == pytest.approx(float(share), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "config", [DEEPER, dataclasses.replace(DEEPER, preactivation=True, shortcut="B")], ids=["post", "pre"]
)
def test_a_lesion_costs_what_the_network_without_the_block_loses(config: ResNetConfig):
    model = network(config)
    images, labels = pictures(70)
    assert model.preprocessing is not None
    found = diagnose(model, images, labels)
    whole = overall(answer(model, images, model.preprocessing).logits, labels)
    assert found.images == 70
    assert found.top1 == whole["top1"]
    assert found.loss == pytest.approx(whole["loss"], rel=1e-6)
    for row in found.blocks.to_dict("records"):
        stage, block = (int(part[5:]) for part in str(row["block"]).split("."))
        lesioned = without_block(model, stage, block)
        expected = overall(answer(lesioned, images, model.preprocessing).logits, labels)
        assert row["lesion_top1"] == expected["top1"]
        assert row["lesion_loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert row["top1_cost"] == whole["top1"] - expected["top1"]
        assert row["loss_cost"] == pytest.approx(expected["loss"] - whole["loss"], abs=1e-5)
        assert row["loss_cost"] != 0


@pytest.mark.parametrize("preactivation", [False, True])
def test_a_block_that_adds_nothing_is_not_missed(preactivation: bool):
    model = network(dataclasses.replace(DEEPER, preactivation=preactivation))
    for _, block in model.blocks():
        zero_branch(block)
    found = diagnose(model, *pictures(40))
    assert (found.blocks["ratio"] == 0).all()
    assert (found.blocks["variance_share"] == 0).all()
    assert found.blocks["cosine"].isna().all()
    assert (found.blocks["top1_cost"] == 0).all()
    assert (found.blocks["loss_cost"] == 0).all()
    assert found.effective_depth == 0


def test_a_fresh_network_that_starts_at_its_shortcuts_is_all_shortcut():
    model = network(dataclasses.replace(DEEPER, zero_init_residual=True))
    for _, block in model.blocks():
        block.get_submodule("bn2").get_parameter("bias").data.zero_()  # `network` had moved it
    found = diagnose(model, *pictures(10))
    assert (found.blocks["ratio"] == 0).all()
    assert (found.blocks["loss_cost"] == 0).all()


def test_responses_equal_those_that_hooks_hear():
    model = network(DEEPER).eval()
    images, _ = pictures(70)
    heard: dict[str, Tensor] = {}
    for name in ("bn1", "layer1.1.bn2"):
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: heard.update({name: output}))
    with torch.no_grad():
        model(normalized(model, images))
    expected = {name: float(output.double().std((0, 2, 3), correction=0).mean()) for name, output in heard.items()}
    found = diagnose(model, images).responses.set_index("layer")
    assert found.loc["stem.conv1", "response"] == pytest.approx(expected["bn1"], rel=1e-5)
    assert found.loc["stage1.block2.conv2", "response"] == pytest.approx(expected["layer1.1.bn2"], rel=1e-5)
    assert list(found.index) == ["stem.conv1", *(f"{name}.conv{n}" for name, _ in model.blocks() for n in (1, 2))]
    ranked = found.sort_values("rank")
    assert list(ranked["rank"]) == list(range(1, 12))
    assert ranked["response"].is_monotonic_decreasing


def test_the_response_of_a_preactivated_convolution_is_its_own_output():
    model = network(dataclasses.replace(TINY, preactivation=True, shortcut="B", stem_norm=False))
    layers = response_layers(model)
    assert layers["stem.conv1"] is model.get_submodule("conv1")
    assert layers["stage1.block1.conv1"] is model.get_submodule("layer1.0.conv1")
    assert layers["stage2.block1.conv2"] is model.get_submodule("layer2.0.conv2")


def test_only_3x3_convolutions_have_a_response():
    bottleneck = network(dataclasses.replace(TINY, block="bottleneck", shortcut="B", stem="imagenet"))
    assert list(response_layers(bottleneck)) == ["stage1.block1.conv2", "stage2.block1.conv2"]
    deep = network(dataclasses.replace(TINY, stem="deep", squeeze_excite=True))
    layers = response_layers(deep)
    assert list(layers)[:3] == ["stem.conv1.0", "stem.conv1.3", "stem.conv1.6"]
    assert [layers[f"stem.conv1.{n}"] for n in (0, 3, 6)] == [
        deep.get_submodule(name) for name in ("conv1.1", "conv1.4", "bn1")
    ]
    assert len(layers) == 3 + 4


def test_folding_does_not_change_the_story():
    model = network(dataclasses.replace(DEEPER, stem="deep"))
    images, labels = pictures(20)
    found, folded = diagnose(model, images, labels), diagnose(fold_batch_norm(model), images, labels)
    pd.testing.assert_frame_equal(found.responses, folded.responses, rtol=1e-3)
    pd.testing.assert_frame_equal(found.blocks, folded.blocks, rtol=1e-2, atol=1e-3)


def test_a_plain_network_has_no_shortcuts_to_compare_with():
    model = network(dataclasses.replace(DEEPER, shortcut="none"))
    images, labels = pictures(40)
    found = diagnose(model, images, labels)
    assert set(found.blocks["kind"]) == {"plain"}
    assert found.blocks[["ratio", "cosine", "variance_share"]].isna().all(axis=None)
    assert found.blocks["lesion_loss"].isna().tolist() == [False, False, True, False, False]
    assert "cannot be removed" in str(found)
    assert model.preprocessing is not None
    expected = overall(answer(without_block(model, 2, 2), images, model.preprocessing).logits, labels)
    assert found.blocks["lesion_loss"][3] == pytest.approx(expected["loss"], rel=1e-6)


def test_kinds_of_shortcuts():
    def kinds(config: ResNetConfig) -> list[str]:
        return diagnose(network(config), pictures(2)[0]).blocks["kind"].tolist()

    assert kinds(DEEPER) == ["identity", "identity", "padded", "identity", "identity"]
    assert kinds(dataclasses.replace(TINY, shortcut="B")) == ["identity", "projection"]
    assert kinds(dataclasses.replace(TINY, shortcut="C")) == ["projection", "projection"]


def test_a_removed_block_is_called_so():
    lesioned = without_block(network(DEEPER), 2, 2)
    found = diagnose(lesioned, *pictures(10))
    assert found.blocks["kind"].tolist() == ["identity", "identity", "padded", "removed", "identity"]
    assert found.blocks[["ratio", "lesion_top1"]].isna().all(axis=1).tolist() == [False, False, False, True, False]


def test_nothing_of_the_network_changes():
    model = network(dataclasses.replace(DEEPER, drop_path=0.5, drop_block=((0.5, 2), (0.5, 2)))).train()
    model.get_submodule("layer1").eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    diagnose(model, *pictures(40), at_most=20)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_sample_is_a_function_of_its_arguments():
    assert sample(5).tolist() == [0, 1, 2, 3, 4]
    drawn = sample(10_000)
    assert len(drawn.unique()) == len(drawn) == 512
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, sample(10_000))
    assert not torch.equal(drawn, sample(10_000, seed=1))


def test_what_is_drawn_is_what_is_looked_at():
    model = network(DEEPER)
    images, labels = pictures(40)
    drawn = sample(40, 15, seed=4)
    found, expected = diagnose(model, images, labels, at_most=15, seed=4), diagnose(model, images[drawn], labels[drawn])
    assert found.images == expected.images == 15
    pd.testing.assert_frame_equal(found.blocks, expected.blocks, check_exact=True)


def test_without_labels_there_are_no_lesions():
    model = network(DEEPER)
    images, labels = pictures(20)
    found, labeled = diagnose(model, images), diagnose(model, images, labels)
    assert (found.top1, found.loss, found.effective_depth) == (None, None, None)
    assert found.blocks[["lesion_top1", "lesion_loss", "top1_cost", "loss_cost"]].isna().all(axis=None)
    assert found.blocks["ratio"].equals(labeled.blocks["ratio"])
    assert "20 images, without lesions" in str(found)


def test_a_block_counts_that_costs_more_than_one_point():
    def depth(images: int, costs: list[float]) -> int | None:
        blocks = pd.DataFrame({"top1_cost": costs})
        return Diagnostics(images=images, top1=0.9, loss=1.0, blocks=blocks, responses=blocks).effective_depth

    assert 0.95 - 0.94 > 0.01  # one image of a hundred, but for the last bit
    assert depth(100, [0.95 - 0.94, 0.95 - 0.93, -0.5, math.nan]) == 1
    assert depth(512, [5 / 512, 6 / 512, 0.3]) == 2


def test_diagnostics_are_saved_and_loaded(tmp_path: Path):
    images, labels = pictures(10)
    for name, given in (("labeled", labels), ("not labeled", None)):
        found = diagnose(network(DEEPER), images, given)
        found.save(tmp_path / name)
        loaded = Diagnostics.load(tmp_path / name)
        assert (loaded.images, loaded.top1, loaded.loss) == (found.images, found.top1, found.loss)
        pd.testing.assert_frame_equal(loaded.blocks, found.blocks, check_exact=True)
        pd.testing.assert_frame_equal(loaded.responses, found.responses, check_exact=True)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["blocks.parquet", "responses.parquet"]


def test_a_trained_network_needs_its_blocks(digits_run: Run, digits: ImageData):
    model, split = load(digits_run), digits.split("test")
    assert isinstance(split.images, Tensor)
    found = diagnose(model, split.images, split.labels)
    assert found.images == 360
    assert found.effective_depth is not None and found.effective_depth >= 1
    assert (found.blocks["ratio"] > 0).all()
    assert found.blocks["loss_cost"].max() > 0.01
    shown = str(found)
    assert all(fact in shown for fact in ("360 images", f"{found.effective_depth} of 9 blocks", "stage3.block3"))
    assert "19 3x3 convolutions" in shown


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda model, images: diagnose(model, images.float()), r"uint8 \(N, C, H, W\), got torch.float32"),
        (lambda model, images: diagnose(model, images[:0]), "1 channel"),
        (lambda model, images: diagnose(model, images, torch.zeros(3).long()), "labels .* 4 int64"),
        (lambda model, images: diagnose(model, images, torch.zeros(4)), r"from 0 to 9, .* got torch.float32 \(4,\)"),
        (lambda model, images: diagnose(model, images, torch.full((4,), 10)), "labels .* 4 int64"),
        (lambda model, images: diagnose(model, images, at_most=0), "at_most .*1, got 0"),
        (lambda model, images: diagnose(ResNet(TINY), images), "preprocessing.*class_names"),
        (lambda model, images: diagnose(nn.Identity(), images), "got Identity"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(call: Callable, facts: str):
    with pytest.raises(UserError, match=facts):
        call(network(TINY), pictures(4)[0])


def test_missing_and_newer_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"blocks\.parquet"):
        Diagnostics.load(tmp_path)
    diagnose(network(TINY), pictures(2)[0]).save(tmp_path)
    table = pd.read_parquet(tmp_path / "blocks.parquet")
    table.attrs["schema"] = 2
    table.to_parquet(tmp_path / "blocks.parquet", index=False)
    with pytest.raises(UserError, match=r"blocks\.parquet .*schema 2.* 1"):
        Diagnostics.load(tmp_path)
