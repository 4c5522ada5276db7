from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import to_array
from resnetlab.core.runs import Run
from resnetlab.data.sources import load_data
from resnetlab.data.store import ImageData
from resnetlab.evaluation.embeddings import embedding_map, nearest, neighbour_sheet, neighbours
from resnetlab.training.fit import fit


@pytest.fixture(scope="module")
def clusters() -> pd.DataFrame:
    """Forty points around each of three directions at right angles to each other."""
    labels = np.arange(120) % 3
    values = np.eye(3, 16)[labels] + np.random.default_rng(0).normal(0, 0.05, (120, 16))
    return pd.DataFrame(
        {"index": np.arange(120) + 7, "label": np.array(["a", "b", "c"])[labels], "values": list(values.astype("f4"))}
    )


def plane(made: pd.DataFrame) -> np.ndarray:
    return made[["x", "y"]].to_numpy(float)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_clusters_stay_apart_and_the_same_seed_gives_the_same_map(clusters: pd.DataFrame, method: str):
    made = embedding_map(clusters.assign(path="p"), method=method, seed=1)
    assert (made.neighbour_accuracy, made.map_accuracy, made.method) == (1.0, 1.0, method)
    assert (made.explained is None) == (method == "tsne")
    assert list(made.points) == ["index", "x", "y", "label", "path"]
    assert made.points["index"].tolist() == list(range(7, 127))
    centers = made.points.groupby("label")[["x", "y"]].mean().to_numpy()
    own = centers[np.arange(120) % 3]
    gaps = np.linalg.norm(centers[:, None] - centers, axis=2)[np.triu_indices(3, 1)]
    assert np.linalg.norm(plane(made.points) - own, axis=1).max() < gaps.min() / 2
    again = embedding_map(np.stack(list(clusters["values"])), clusters["label"].tolist(), method=method, seed=1)
    assert (plane(again.points) == plane(made.points)).all()
    assert again.points["index"].tolist() == list(range(120))


def test_the_length_of_an_embedding_does_not_count(clusters: pd.DataFrame):
    longer = clusters.assign(values=[value * 2.0 ** (at % 5) for at, value in enumerate(clusters["values"])])
    made, expected = embedding_map(longer, method="pca"), embedding_map(clusters, method="pca")
    assert plane(made.points) == pytest.approx(plane(expected.points), abs=1e-6)


def test_pca_tells_the_share_of_the_variance(clusters: pd.DataFrame):
    made = embedding_map(clusters, method="pca")
    values = np.stack(list(clusters["values"])).astype(float)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    spread = np.linalg.svd(values - values.mean(0), compute_uv=False) ** 2
    assert made.explained == pytest.approx(spread[:2] / spread.sum(), abs=1e-6)


def test_accuracies_are_a_vote_of_ten_others_where_the_nearest_decides_a_tie():
    angles = np.concatenate([np.linspace(0, 0.1, 6), np.linspace(1, 1.1, 5)])
    values = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = ["near"] * 6 + ["far"] * 5
    # All ten others vote: five of either label for each of the six, whose nearest is their own; six to four else.
    made = embedding_map(values, labels, method="pca")
    assert made.neighbour_accuracy == made.map_accuracy == 6 / 11


def test_a_map_that_folds_the_space_shows_it_in_its_accuracy():
    draws = np.random.default_rng(0)
    values = draws.normal(size=(300, 12))
    values[:, 2:6] += 0.6 * draws.choice([-1, 1], (300, 1))
    values[:, :2] *= 9  # most of the variance tells nothing of the label
    labels = np.where(values[:, 2:6].sum(1) > 0, "up", "down")
    made = embedding_map(values, labels, method="pca")
    assert made.map_accuracy < made.neighbour_accuracy - 0.1


def test_a_limit_keeps_the_classes_in_proportion(clusters: pd.DataFrame):
    uneven = clusters[(clusters["label"] != "c") | (clusters["index"] < 40)]
    made = embedding_map(uneven, method="pca", limit=30)
    counts = (uneven["label"].value_counts() * 30 / len(uneven)).to_dict()
    assert made.points["label"].value_counts().to_dict() == pytest.approx(counts, abs=1)
    assert len(made.points) == 30
    kept = clusters.set_index("index")["label"]
    assert (kept[made.points["index"]].to_numpy() == made.points["label"].to_numpy()).all()
    assert made.points["index"].is_monotonic_increasing
    others = embedding_map(uneven, method="pca", limit=30, seed=1)
    assert others.points["index"].tolist() != made.points["index"].tolist()
    assert len(embedding_map(clusters, method="pca", limit=500).points) == 120


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_few_points_are_laid_out_apart(method: str, count: int):
    values = np.random.default_rng(0).normal(size=(count, 5))
    made = embedding_map(values, np.arange(count) % 2, method=method)
    points = plane(made.points)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == count


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_what_has_nothing_to_lay_out_is_one_point(method: str):
    one = embedding_map(np.ones((1, 4)), ["a"], method=method)
    assert plane(one.points).tolist() == [[0, 0]]
    assert math.isnan(one.neighbour_accuracy)
    assert math.isnan(one.map_accuracy)
    same = embedding_map(np.outer(np.linspace(1, 2, 50), np.full(9, 0.3)), ["a"] * 50, method=method)
    assert not plane(same.points).any()
    assert same.neighbour_accuracy == same.map_accuracy == 1
    zeros = embedding_map(np.zeros((5, 3)), [1] * 5, method=method)
    assert not plane(zeros.points).any()
    assert zeros.explained == (None if method == "tsne" else (0, 0))


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_one_class_one_dimension_and_copies_are_laid_out(method: str):
    values = np.random.default_rng(0).normal(size=(40, 1))
    made = embedding_map(values, ["a"] * 40, method=method)
    assert np.isfinite(plane(made.points)).all()
    assert made.neighbour_accuracy == made.map_accuracy == 1
    copies = np.repeat(np.eye(3), [20, 20, 1], axis=0)
    made = embedding_map(copies, ["a"] * 20 + ["b"] * 20 + ["c"], method=method)
    assert np.isfinite(plane(made.points)).all()
    assert made.neighbour_accuracy == 40 / 41


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([[1.0, float("nan")], [1.0, 2.0]], "ab", "1 of 2 embeddings hold NaN or infinite values"),
        ([[1.0, float("inf")], [float("nan"), 2.0]], "ab", "2 of 2 embeddings hold NaN or infinite values"),
        ([[1.0, 2.0], [1.0, 2.0]], "abc", "2 embeddings and 3 labels. Give a label for each"),
        ([[1.0, 2.0], [1.0, 2.0]], None, "2 embeddings and 0 labels"),
        ([], "", "at least one row of numbers, all rows of the same length"),
        ([[1.0, 2.0], [1.0]], "ab", "at least one row of numbers, all rows of the same length"),
        ([["x"]], "a", "at least one row of numbers, all rows of the same length"),
        (pd.DataFrame({"values": [[1.0]]}), None, "this one lacks index, label"),
    ],
)
def test_what_is_no_table_of_embeddings_is_refused(values, labels, message: str):
    with pytest.raises(UserError, match=message):
        embedding_map(values, None if labels is None else list(labels))


def test_wrong_settings_are_refused(clusters: pd.DataFrame):
    with pytest.raises(UserError, match="unknown method 'umap'"):
        embedding_map(clusters, method="umap")
    with pytest.raises(UserError, match="limit must be an integer of at least 1, got 0"):
        embedding_map(clusters, limit=0)
    with pytest.raises(UserError, match="limit=2 is fewer images than the 3 classes"):
        embedding_map(clusters, limit=2)


def test_nearest_is_the_brute_force_cosine():
    draws = np.random.default_rng(0)
    values, query = draws.normal(size=(200, 32)).astype(np.float32), draws.normal(size=32)
    frame = pd.DataFrame({"index": np.arange(200) * 2, "label": "a", "values": list(values)})
    cosines = [
        math.fsum(row.astype(float) * query) / math.sqrt(math.fsum(row.astype(float) ** 2) * math.fsum(query**2))
        for row in values
    ]
    order = sorted(range(200), key=lambda at: -cosines[at])[:5]
    found = nearest(frame, query, 5)
    assert list(found) == ["rank", "index", "label", "similarity"]
    assert found.index.tolist() == order
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["index"].tolist() == [2 * at for at in order]
    assert found["similarity"].to_numpy() == pytest.approx(np.array(cosines)[order], abs=1e-12)
    assert len(nearest(frame, query, 500)) == 200


def test_nearest_of_zeros_and_of_other_networks_embeddings():
    frame = pd.DataFrame({"index": [0, 1], "label": "a", "values": [[0.0, 0.0], [3.0, 4.0]]})
    assert nearest(frame, np.array([6.0, 8.0]), 2)["similarity"].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"have 2 values each, and the query has 3. Embed it with the network"):
        nearest(frame, np.zeros(3), 1)
    with pytest.raises(UserError, match="1 of 1 embeddings hold NaN"):
        nearest(frame, np.array([1.0, np.nan]), 1)
    with pytest.raises(UserError, match="k must be an integer of at least 1, got 0"):
        nearest(frame, np.zeros(2), 0)


def test_an_index_leaves_itself_out_and_a_file_finds_itself(digits_run: Run, digits: ImageData, tmp_path: Path):
    split = digits.split("test")
    own = int(split.index[5])
    found = neighbours(digits_run, own, k=6)
    assert list(found) == ["rank", "index", "label", "similarity"]
    assert own not in found["index"].tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert split.index[found.index.tolist()].tolist() == found["index"].tolist()
    closest = [neighbours(digits_run, int(index), k=1)["label"].tolist() for index in split.index[:30]]
    agree = [label == [digits.class_names[own]] for label, own in zip(closest, split.labels[:30].tolist(), strict=True)]
    assert sum(agree) >= 22  # the network errs now and then, after four epochs
    Image.fromarray(to_array(split.images[torch.tensor(5)])[:, :, 0]).save(tmp_path / "five.png")
    by_file = neighbours(digits_run.path, tmp_path / "five.png", k=7, device="cpu")
    assert by_file["index"].tolist() == [own, *found["index"]]
    assert by_file["similarity"].tolist() == pytest.approx([1, *found["similarity"]], abs=1e-5)
    assert len(neighbours(digits_run, own, k=5000)) == len(split) - 1


def test_other_images_with_the_same_pixels_are_found(digits_run: Run, tmp_path: Path):
    shutil.copytree(digits_run.path, tmp_path / "run")
    file = tmp_path / "run" / "evaluation" / "embeddings.parquet"
    table = pd.read_parquet(file)
    table.at[3, "values"] = table.at[8, "values"]
    table.to_parquet(file)
    found = neighbours(tmp_path / "run", table.at[8, "index"], k=1)
    assert found["index"].tolist() == [table.at[3, "index"]]
    assert found["similarity"].tolist() == pytest.approx([1])


def test_images_in_files_are_named_and_their_neighbours_drawn(image_folder: Path, tmp_path: Path):
    data = load_data(image_folder, image_size=16)
    run = fit("quick_resnet", data, out=tmp_path / "run", epochs=1, quiet=True)
    file = image_folder / "red" / "00.png"
    found = neighbours(run, file, k=3)
    assert list(found) == ["rank", "index", "path", "label", "similarity"]
    paths = data.split("test").paths
    assert paths is not None
    assert found["path"].tolist() == [paths[at] for at in found.index]
    sheet = neighbour_sheet(run, file, found, data=data)
    (tmp_path / "elsewhere").mkdir()
    moved = image_folder.rename(tmp_path / "elsewhere" / image_folder.name)
    assert neighbour_sheet(run, moved / "red" / "00.png", found, data=moved).tobytes() == sheet.tobytes()
    with pytest.raises(UserError, match=r"there is nothing now\. Put them back there, or say where"):
        neighbour_sheet(run, moved / "red" / "00.png", found)
    with pytest.raises(UserError, match="are not those of the run"):
        neighbour_sheet(run, moved / "red" / "00.png", found, data=load_data("digits"))
