from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.manifold import TSNE

from resnetlab.core.errors import UserError
from resnetlab.evaluation.embeddings import embedding_map


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
    assert (made.neighbor_accuracy, made.map_accuracy, made.method) == (1.0, 1.0, method)
    assert made.pca_accuracy == 1 and 0 < made.explained[1] < made.explained[0] < 1
    principal = ["pca_x", "pca_y"] if method == "tsne" else []
    assert list(made.points) == ["index", "x", "y", "label", "path", *principal]
    assert made.points["index"].tolist() == list(range(7, 127))
    centers = np.stack([plane(made.points.loc[made.points["label"] == label]).mean(0) for label in "abc"])
    own = centers[np.arange(120) % 3]
    gaps = np.linalg.norm(centers[:, None] - centers, axis=2)[np.triu_indices(3, 1)]
    assert np.linalg.norm(plane(made.points) - own, axis=1).max() < gaps.min() / 2
    again = embedding_map(np.stack(list(clusters["values"])), clusters["label"].tolist(), method=method, seed=1)
    assert (plane(again.points) == plane(made.points)).all()
    assert again.points["index"].tolist() == list(range(120))


def test_scikit_learn_still_calls_the_steps_of_exaggeration_as_we_do():
    assert TSNE._EXPLORATION_MAX_ITER == 250  # renamed, it would change nothing but the time that a map takes


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
    both = embedding_map(clusters)
    assert abs(both.points[["pca_x", "pca_y"]].to_numpy()) == pytest.approx(abs(plane(made.points)), abs=1e-5)
    assert (both.explained, both.pca_accuracy) == (pytest.approx(made.explained, abs=1e-6), made.map_accuracy)


def test_accuracies_are_a_vote_of_ten_others_where_the_nearest_decides_a_tie():
    angles = np.concatenate([np.linspace(0, 0.1, 6), np.linspace(1, 1.1, 5)])
    values = np.stack([np.cos(angles), np.sin(angles)], 1)
    labels = ["near"] * 6 + ["far"] * 5
    # All ten others vote: five of either label for each of the six, whose nearest is their own; six to four else.
    made = embedding_map(values, labels, method="pca")
    assert made.neighbor_accuracy == made.map_accuracy == 6 / 11


def test_a_map_that_folds_the_space_shows_it_in_its_accuracy():
    draws = np.random.default_rng(0)
    values = draws.normal(size=(300, 12))
    values[:, 2:6] += 0.6 * draws.choice([-1, 1], (300, 1))
    values[:, :2] *= 9  # most of the variance tells nothing of the label
    labels = np.where(values[:, 2:6].sum(1) > 0, "up", "down")
    made = embedding_map(values, labels, method="pca")
    assert made.map_accuracy < made.neighbor_accuracy - 0.1


def test_a_limit_keeps_the_classes_in_proportion(clusters: pd.DataFrame):
    uneven = clusters.loc[(clusters["label"] != "c") | (clusters["index"] < 40)]
    made = embedding_map(uneven, method="pca", limit=30)
    counts = (uneven["label"].value_counts() * 30 / len(uneven)).to_dict()
    assert made.points["label"].value_counts().to_dict() == pytest.approx(counts, abs=1)
    assert len(made.points) == 30
    kept = dict(zip(clusters["index"], clusters["label"], strict=True))
    assert [kept[index] for index in made.points["index"]] == made.points["label"].tolist()
    assert made.points["index"].is_monotonic_increasing
    others = embedding_map(uneven, method="pca", limit=30, seed=1)
    assert others.points["index"].tolist() != made.points["index"].tolist()
    assert len(embedding_map(clusters, method="pca", limit=500).points) == 120
    assert len(embedding_map(clusters, method="pca", limit=2).points) == 2  # fewer than classes


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
    assert math.isnan(one.neighbor_accuracy)
    assert math.isnan(one.map_accuracy)
    same = embedding_map(np.outer(np.linspace(1, 2, 50), np.full(9, 0.3)), ["a"] * 50, method=method)
    assert not plane(same.points).any()
    assert same.neighbor_accuracy == same.map_accuracy == 1
    zeros = embedding_map(np.zeros((5, 3)), [1] * 5, method=method)
    assert not plane(zeros.points).any()
    assert zeros.explained == (0, 0)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_one_class_one_dimension_and_copies_are_laid_out(method: str):
    values = np.random.default_rng(0).normal(size=(40, 1))
    made = embedding_map(values, ["a"] * 40, method=method)
    assert np.isfinite(plane(made.points)).all()
    assert made.neighbor_accuracy == made.map_accuracy == 1
    copies = np.repeat(np.eye(3), [20, 20, 1], axis=0)
    made = embedding_map(copies, ["a"] * 20 + ["b"] * 20 + ["c"], method=method)
    assert np.isfinite(plane(made.points)).all()
    assert made.neighbor_accuracy == 40 / 41


@pytest.mark.parametrize(
    ("values", "labels", "facts"),
    [
        ([[1.0, float("nan")], [1.0, 2.0]], "ab", "1 of 2 .*NaN"),
        ([[1.0, float("inf")], [float("nan"), 2.0]], "ab", "2 of 2 .*NaN"),
        ([[1.0, 2.0], [1.0, 2.0]], "abc", "2 embeddings and 3 labels"),
        ([[1.0, 2.0], [1.0, 2.0]], None, "2 embeddings and 0 labels"),
        ([], "", "row of numbers"),
        ([[1.0, 2.0], [1.0]], "ab", "row of numbers"),
        ([["x"]], "a", "row of numbers"),
        (pd.DataFrame({"values": [[1.0]]}), None, "index, label"),
    ],
)
def test_other_values_than_embeddings_are_refused(values, labels, facts: str):
    with pytest.raises(UserError, match=facts):
        embedding_map(values, None if labels is None else list(labels))


def test_wrong_settings_are_refused(clusters: pd.DataFrame):
    with pytest.raises(UserError, match="'umap'"):
        embedding_map(clusters, method="umap")
    with pytest.raises(UserError, match=r"limit .*1, got 0"):
        embedding_map(clusters, limit=0)
