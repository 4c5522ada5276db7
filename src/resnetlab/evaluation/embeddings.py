"""A two-dimensional map of embeddings, and how well it preserves their neighborhoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from torch import Tensor

from resnetlab.core.checks import check_choice, check_integer, check_schema, check_shape
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, printable
from resnetlab.core.tables import read_table
from resnetlab.data.splits import limited

SCHEMA_VERSION = 1
METHODS = ("tsne", "pca")
NEIGHBORS = 10
"""Number of neighbors that vote in the accuracies of a map."""

_COMPONENTS, _PERPLEXITY = 50, 30.0
_STEPS, _ANGLE = 350, 1.0
"""Settings of t-SNE, coarser than scikit-learn's 1,000 and 0.5: a sixth of the time for the same `map_accuracy`."""
_COLUMNS = {"index": "number", "x": "number", "y": "number", "label": "text"}
_FACTS = {
    "method": str, "neighbor_accuracy": float, "map_accuracy": float, "explained": [float], "pca_accuracy": float,
}  # fmt: skip
_ROUNDING = 1e-6
"""Unit vectors that differ by less count as equal."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Embeddings as points in the plane, and how well the map preserves their neighborhoods.

    Attributes:
        points: one row per embedding: index, x, y, label, and the other columns of the table of embeddings; for "tsne"
            also pca_x and pca_y, the first two principal components of the same embeddings.
        method: "tsne" or "pca".
        neighbor_accuracy: fraction of the points with the label of most of their nearest neighbors, in the full space;
            see `embedding_map`. NaN for a single point.
        map_accuracy: the same in the map. If it is much lower, the map does not show what the network has learned.
        explained: fractions of the variance along the first two principal components.
        pca_accuracy: `map_accuracy` for these two components.
    """

    points: pd.DataFrame
    method: str
    neighbor_accuracy: float
    map_accuracy: float
    explained: tuple[float, float]
    pca_accuracy: float

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Writes map.parquet: the points, and the other attributes and `facts` in its metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        table = self.points.copy(deep=False)
        names = ("method", "neighbor_accuracy", "map_accuracy", "explained", "pca_accuracy")
        values = {name: getattr(self, name) for name in names}
        table.attrs = {"schema": SCHEMA_VERSION, **(facts or {}), **values}  # type: ignore[dict-item]  # its keys are texts
        with atomic(folder / "map.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    @classmethod
    def load(cls, folder: Path) -> EmbeddingMap:
        """Reads what `save` wrote."""
        path = folder / "map.parquet"
        if not path.is_file():
            raise UserError(f"no map in {folder}: {path.name} not found. Run explore first.")
        points = read_table(path, _COLUMNS)
        facts, points.attrs = points.attrs, {}
        check_schema(path, facts.get("schema"), SCHEMA_VERSION)
        check_shape(printable(path), facts, _FACTS)
        return cls(
            points=points,
            method=facts["method"],
            neighbor_accuracy=facts["neighbor_accuracy"],
            map_accuracy=facts["map_accuracy"],
            explained=(facts["explained"][0], facts["explained"][-1]),
            pca_accuracy=facts["pca_accuracy"],
        )


def embedding_map(
    embeddings: pd.DataFrame | np.ndarray | Tensor,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    method: str = "tsne",
    seed: int = 0,
    limit: int | None = None,
) -> EmbeddingMap:
    """Projects embeddings to the plane, and measures how well their neighborhoods are preserved.

    Embeddings are first scaled to length 1. "tsne" reduces them to 50 principal components and applies t-SNE (van der
    Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008, with the Barnes-Hut method) with perplexity 30, or a
    third of the other points if there are few. Near points in the map are similar; distances between groups have no
    meaning. "pca" uses the first two principal components, which the map of "tsne" also has.

    The accuracies are those of a vote of the 10 nearest other points, leaving each point out in turn. A tie goes to the
    tied class of the nearest neighbor.

    The projection uses one thread, so the same seed gives the same map on any number of threads. 10,000 points of 128
    numbers take about 20 seconds on a slow core, and the time grows with the number of points.

    Args:
        embeddings: the table that `evaluate` returns and writes (index, label, values), or (N, D) numbers.
        labels: one label per embedding; default those of the table.
        method: "tsne" or "pca".
        seed: of the principal components and of the sample of `limit`.
        limit: maximum number of points; of more, a sample that keeps the proportions of the classes is shown, or any
            points if there are more classes.

    Raises:
        UserError: there are no embeddings, the number of labels differs, or values are not finite.
    """
    method, seed = check_choice("method", method, METHODS), check_integer("seed", seed, 0)
    frame, values = _read(embeddings, labels)
    names, classes = np.unique(frame["label"].astype(str).to_numpy(dtype=str), return_inverse=True)
    if limit is not None and check_integer("limit", limit, 1) < len(frame):
        kept = np.sort(limited(classes, len(names), limit, seed, option=None))
        frame, values, classes = frame.iloc[kept].reset_index(drop=True), values[kept], classes[kept]
    values = np.asarray(normalize(values))
    with threadpool_limits(limits=1):  # several threads sum in another order, and t-SNE amplifies small differences
        places, components, explained = np.zeros((len(values), 2)), np.zeros((len(values), 2)), np.zeros(2)
        if np.abs(values - values[0]).max() > _ROUNDING:
            components, explained = _principal(values, 2 if method == "pca" else _COMPONENTS, seed)
            places = components if method == "pca" else _tsne(components, seed)
        accuracy, map_accuracy = _neighbor_accuracy(values, classes), _neighbor_accuracy(places, classes)
        pca_accuracy = map_accuracy if method == "pca" else _neighbor_accuracy(components[:, :2], classes)
    frame.insert(1, "x", places[:, 0])
    frame.insert(2, "y", places[:, 1])
    if method == "tsne":
        frame[["pca_x", "pca_y"]] = components[:, :2]
    return EmbeddingMap(
        points=frame,
        method=method,
        neighbor_accuracy=accuracy,
        map_accuracy=map_accuracy,
        explained=(float(explained[0]), float(explained[1])),
        pca_accuracy=pca_accuracy,
    )


def finite_rows(rows: Any) -> np.ndarray:
    """Returns rows of numbers as a finite array (N, D), in float32 or float64."""
    try:
        values = np.stack([np.asarray(row) for row in rows])
        values = values if values.dtype == np.float32 else values.astype(np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or not values.size:
        raise UserError("expected embeddings as at least one row of numbers, with all rows of the same length.")
    if bad := int((~np.isfinite(values).all(1)).sum()):
        raise UserError(
            f"{bad:,} of {len(values):,} embeddings contain NaN or infinite values. The training of the network "
            "probably diverged: look at its loss."
        )
    return values


def _read(
    embeddings: pd.DataFrame | np.ndarray | Tensor, labels: Sequence[Any] | np.ndarray | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns one row per point (index, label, other columns), and their values (N, D)."""
    if isinstance(embeddings, pd.DataFrame):
        needed = ["index", "values", *(["label"] if labels is None else [])]
        if missing := [name for name in needed if name not in embeddings]:
            raise UserError(
                f"expected a table of embeddings with index, label and values; {', '.join(missing)} missing."
            )
        values = finite_rows(embeddings["values"])
        frame = embeddings.drop(columns="values").reset_index(drop=True)
    else:
        values = finite_rows(embeddings)
        frame = pd.DataFrame({"index": np.arange(len(values))})
    if labels is not None or "label" not in frame:
        count = 0 if labels is None else len(labels)
        if count != len(frame):
            raise UserError(f"expected one label per embedding, got {len(frame):,} embeddings and {count:,} labels.")
        frame["label"] = np.asarray(labels)
    return pd.DataFrame(frame, columns=["index", "label", *frame.columns.drop(["index", "label"])]), values


def _principal(values: np.ndarray, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `components` principal components (N, components) and their fractions of the variance."""
    pca = PCA(min(components, *values.shape), random_state=seed % 2**32)
    places, explained = pca.fit_transform(values), pca.explained_variance_ratio_
    missing = max(0, 2 - places.shape[1])  # points with a single component still need two axes
    return np.pad(places, ((0, 0), (0, missing))), np.pad(explained, (0, missing))


def _tsne(components: np.ndarray, seed: int) -> np.ndarray:
    """Returns the t-SNE map (N, 2) of the principal components of two or more points that are not all equal."""
    tsne = _ShortTSNE(
        perplexity=min(_PERPLEXITY, max(1.0, (len(components) - 1) / 3)),
        init="pca",
        learning_rate="auto",
        max_iter=_STEPS,
        angle=_ANGLE,
        random_state=seed % 2**32,
    )
    return tsne.fit_transform(components)


class _ShortTSNE(TSNE):
    """t-SNE with half as many steps of early exaggeration, enough for groups that PCA already separates.

    scikit-learn has no argument for it. In a version with another name for this attribute, it only takes longer.
    """

    _EXPLORATION_MAX_ITER = 125


def _neighbor_accuracy(places: np.ndarray, classes: np.ndarray) -> float:
    """Returns the accuracy of the vote of each point's nearest neighbors; see `embedding_map`."""
    count = min(NEIGHBORS, len(places) - 1)
    if not count:
        return float("nan")
    near = NearestNeighbors(n_neighbors=count).fit(places).kneighbors(return_distance=False)
    # The additional weights sum to less than 1, so they only break ties, in favor of the nearest neighbor.
    weights = 1 + 0.5 ** np.arange(1, count + 1)
    named = classes[near]
    votes = (named[:, :, None] == named[:, None, :]) @ weights  # (points, neighbors): of each neighbor's class
    return float((named[np.arange(len(places)), votes.argmax(1)] == classes).mean())
