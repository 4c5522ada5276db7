from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from tests.conftest import TINY

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation import explore as explore_module
from resnetlab.evaluation.diagnostics import Diagnostics, diagnose
from resnetlab.evaluation.embeddings import EmbeddingMap, embedding_map
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.evaluation.explore import affordable, explore
from resnetlab.evaluation.result import Evaluation, Exploration
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.weights.file import load

FILES = ["blocks.parquet", "map.parquet", "responses.parquet"]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(digits_run: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(digits_run.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def network(digits_run: Run) -> ResNet:
    return check_network(load(digits_run))


@pytest.fixture(scope="module")
def evaluation(network: ResNet, digits: ImageData) -> Evaluation:
    return evaluate_split(network, digits)


@pytest.fixture(scope="module")
def explored(network: ResNet, digits: ImageData, evaluation: Evaluation) -> Exploration:
    return explore(network, digits, "test", evaluation.embeddings)


def diagnosed(found: Exploration) -> Diagnostics:
    assert found.diagnostics is not None
    return found.diagnostics


def assert_equal(found: Exploration, expected: Exploration) -> None:
    pd.testing.assert_frame_equal(found.map.points, expected.map.points, check_exact=True)
    facts = [dataclasses.replace(one.map, points=pd.DataFrame()) for one in (found, expected)]
    assert str(facts[0]) == str(facts[1])
    assert diagnosed(found).images == diagnosed(expected).images
    pd.testing.assert_frame_equal(diagnosed(found).blocks, diagnosed(expected).blocks)
    pd.testing.assert_frame_equal(diagnosed(found).responses, diagnosed(expected).responses)


def first(data: ImageData, count: int) -> ImageData:
    """Data with a test split of so many images only."""
    split = data.split("test")
    assert isinstance(split.images, torch.Tensor)
    kept = dataclasses.replace(
        split, images=split.images[:count], labels=split.labels[:count], index=split.index[:count]
    )
    return dataclasses.replace(data, splits={"test": kept})


def test_it_is_the_map_of_the_embeddings_and_what_the_blocks_do(
    network: ResNet, digits: ImageData, evaluation: Evaluation, explored: Exploration
):
    split = digits.split("test")
    assert isinstance(split.images, torch.Tensor)
    apart = Exploration(
        map=embedding_map(evaluation.embeddings), diagnostics=diagnose(network, split.images, split.labels)
    )
    assert_equal(explored, apart)
    assert list(explored.map.points) == ["index", "x", "y", "label", "pca_x", "pca_y"]
    assert diagnosed(explored).top1 == pytest.approx(evaluation.summary["top1"])


def test_it_does_not_depend_on_the_number_of_threads(
    network: ResNet, digits: ImageData, evaluation: Evaluation, explored: Exploration
):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = explore(network, digits, "test", evaluation.embeddings)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert_equal(again, explored)


def test_it_is_saved_and_loaded(explored: Exploration, tmp_path: Path):
    folder = tmp_path / "evaluation"
    assert Exploration.load(folder) is None
    explored.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    loaded = Exploration.load(folder)
    assert loaded is not None
    assert_equal(loaded, explored)
    for name in FILES:
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        assert Exploration.load(folder) is None
        (folder / name).write_bytes(kept)
    Exploration.remove(folder)
    Exploration.remove(folder)
    assert list(folder.iterdir()) == []


def test_a_map_is_saved_with_its_accuracies(tmp_path: Path):
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for made in (embedding_map(values, list("ab") * 10, method="pca"), embedding_map(values[:1], ["a"])):
        made.save(tmp_path)
        loaded = EmbeddingMap.load(tmp_path)
        pd.testing.assert_frame_equal(loaded.points, made.points, check_exact=True)
        assert (loaded.method, loaded.explained) == (made.method, made.explained)
        accuracies = [loaded.neighbor_accuracy, loaded.map_accuracy, loaded.pca_accuracy]
        expected = [made.neighbor_accuracy, made.map_accuracy, made.pca_accuracy]
        assert accuracies == pytest.approx(expected, nan_ok=True)
    table = pd.read_parquet(tmp_path / "map.parquet")
    table.attrs["schema"] = 2
    table.to_parquet(tmp_path / "map.parquet", index=False)
    with pytest.raises(UserError, match=r"map\.parquet .*schema 2.* 1"):
        EmbeddingMap.load(tmp_path)
    with pytest.raises(UserError, match=r"gone.*map\.parquet"):
        EmbeddingMap.load(tmp_path / "gone")


def test_a_run_is_explored_by_default(run: Run, digits: ImageData):
    assert Exploration.load(run.evaluation()) is None  # the training's own evaluation is figures only
    evaluation = resnetlab.evaluate(run, digits)
    assert evaluation.exploration is not None
    loaded = Exploration.load(run.evaluation())
    assert loaded is not None
    assert_equal(loaded, evaluation.exploration)
    again = resnetlab.evaluate(run, digits, explore=False)
    assert again.exploration is None
    assert Exploration.load(run.evaluation()) is None  # it was of the evaluation before


def test_a_network_is_explored_on_request(network: ResNet, digits: ImageData, explored: Exploration):
    assert resnetlab.evaluate(network, digits).exploration is None
    found = resnetlab.evaluate(network, digits, explore=True).exploration
    assert found is not None
    assert_equal(found, explored)


def test_a_saved_evaluation_takes_its_exploration_along(evaluation: Evaluation, explored: Exploration, tmp_path: Path):
    dataclasses.replace(evaluation, exploration=explored).save(tmp_path)
    loaded = Exploration.load(tmp_path)
    assert loaded is not None
    assert_equal(loaded, explored)
    evaluation.save(tmp_path)
    assert Exploration.load(tmp_path) is None


def test_a_run_is_explored_on_its_split(explored: Exploration, run: Run, digits: ImageData):
    assert explored.map.points["index"].tolist() == digits.split("test").index.tolist()
    assert explored.diagnostics is not None
    assert diagnosed(explored).top1 == pytest.approx((run.summary or {})["top1"])


def test_images_of_another_evaluation_are_refused(network: ResNet, digits: ImageData, evaluation: Evaluation):
    with pytest.raises(UserError, match=r"test split of digits"):
        explore(network, first(digits, 20), "test", evaluation.embeddings)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_few_images_are_explored(network: ResNet, digits: ImageData, tmp_path: Path, count: int):
    data = first(digits, count)
    found = explore(network, data, "test", evaluate_split(network, data).embeddings)
    found.save(tmp_path)
    loaded = Exploration.load(tmp_path)
    assert loaded is not None
    assert_equal(loaded, found)
    assert len(found.map.points) == diagnosed(found).images == count
    assert math.isnan(found.map.map_accuracy) == (count == 1)
    assert diagnosed(found).top1 is not None


def test_images_of_one_class_are_explored_in_the_networks_order_of_classes(network: ResNet, digits: ImageData):
    split = digits.split("test")
    assert isinstance(split.images, torch.Tensor)
    sevens = torch.nonzero(split.labels == 7)[:, 0]
    images = {"images": split.images[sevens], "index": split.index[sevens]}
    only = dataclasses.replace(split, labels=torch.zeros(len(sevens), dtype=torch.int64), **images)
    data = dataclasses.replace(digits, class_names=("7",), splits={"test": only})
    evaluation = evaluate_split(network, data)
    found = explore(network, data, "test", evaluation.embeddings)
    assert found.map.map_accuracy == 1
    assert diagnosed(found).top1 == pytest.approx(evaluation.summary["top1"])


def test_a_network_that_returns_nan_is_evaluated_without_exploration(digits: ImageData):
    model = ResNet(TINY)
    model.preprocessing, model.class_names = digits.preprocessing, digits.class_names
    model.get_submodule("conv1").get_parameter("weight").data.fill_(math.nan)
    with pytest.warns(UserWarning, match=r"360 of 360 .*NaN"):
        evaluation = resnetlab.evaluate(model, digits, explore=True)
    assert evaluation.exploration is None
    assert math.isnan(evaluation.summary["loss"])


def test_the_work_decides_how_many_images_are_diagnosed():
    assert affordable(40_000_000, 3, 10_000) == 512  # of a small network, all that are wanted
    assert affordable(40_000_000, 3, 100) == 100
    assert affordable(1_800_000_000, 8, 100) == 55  # of a large one, what the fixed amount of work allows
    assert affordable(4_100_000_000, 16, 3_925) == 436  # or what the evaluation itself took
    assert affordable(2_800_000_000, 200, 100) == 1


def test_with_too_few_images_there_are_no_lesions(
    network: ResNet, digits: ImageData, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(explore_module, "affordable", lambda *_: 31)
    found = diagnosed(explore(network, digits, "test", evaluation.embeddings))
    assert (found.images, found.top1) == (32, None)
    assert all(found.blocks["lesion_top1"].isna())
    monkeypatch.setattr(explore_module, "affordable", lambda *_: 32)
    found = diagnosed(explore(network, digits, "test", evaluation.embeddings))
    assert found.images == 32
    assert all(found.blocks["lesion_top1"].notna())


@pytest.mark.slow
def test_the_command_says_what_it_does(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch):
    code, _, err = cli("evaluate", run.path)
    assert code == 0, err
    assert "mapping" not in err  # so few images take a moment
    assert Exploration.load(run.evaluation()) is not None
    code, _, err = cli("evaluate", run.path, "--no-explore")
    assert code == 0, err
    assert Exploration.load(run.evaluation()) is None
    monkeypatch.setattr(explore_module, "_WORTH_A_MESSAGE", 100)
    code, _, err = cli("evaluate", run.path)
    assert code == 0, err
    assert "360 embeddings" in err and "9 blocks" in err
    assert f"tables  {run.evaluation()}" in err


def test_other_images_from_the_shell_may_lack_classes(cli: Cli, run: Run, digits: ImageData, tmp_path: Path):
    split = digits.split("test")
    assert isinstance(split.images, torch.Tensor)
    for name, count in (("some", 30), ("single", 1)):
        for number in range(count):
            folder = tmp_path / name / digits.class_names[int(split.labels[number]) % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[number, 0].numpy()).save(folder / f"{number}.png")
    code, out, err = cli("evaluate", run.path, "--data", tmp_path / "some")
    assert code == 0, err
    assert "30 images" in out and "7 of the network's 10 classes: 3, 4, 5, 6, 7, 8, 9" in out
    code, out, err = cli("evaluate", run.path, "--data", tmp_path / "single")
    assert code == 0, err
    assert ", 1 image\n" in out and "9 of the network's 10 classes" in out
    assert Exploration.load(run.evaluation("single")) is not None
    next((tmp_path / "single").iterdir()).rename(tmp_path / "single" / "eleven")
    code, _, err = cli("evaluate", run.path, "--data", tmp_path / "single")
    assert (code, "single" in err, "'eleven'" in err, "'0', '1'" in err) == (2, True, True, True)
