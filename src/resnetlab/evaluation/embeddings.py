"""Embeddings: a map of them in the plane, and the images nearest to an image."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from torch import Tensor

from resnetlab.core.checks import check_choice, check_integer
from resnetlab.core.devices import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.preprocessing import Preprocessing, to_tensor
from resnetlab.core.runs import Run
from resnetlab.data.contact_sheet import contact_sheet
from resnetlab.data.reader import decode_image
from resnetlab.data.sources import check_same_data, reload_data
from resnetlab.data.splits import limited
from resnetlab.data.store import ImageData
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.weights.file import load, weights_path

METHODS = ("tsne", "pca")
NEIGHBOURS = 10
"""How many neighbours vote in the accuracies of a map."""

_COMPONENTS, _PERPLEXITY = 50, 30.0
_STEPS, _ANGLE = 500, 0.8
"""Of t-SNE: coarser than scikit-learn's 1,000 and 0.5; a third of the time, for the same `map_accuracy`."""
_ROUNDING = 1e-6
"""Unit vectors that differ by less are the same one."""
_SHEET_COLUMNS = 9


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """Embeddings as points in the plane, and how far the map can be believed.

    Attributes:
        points: a row an embedding: index, x, y, label, and what else the table of embeddings had.
        method: "tsne" or "pca".
        neighbour_accuracy: share of the points whose label is that of most of their nearest neighbours, in the full
            space; see `embedding_map`. NaN of one point.
        map_accuracy: the same in the map: where it is much lower, the map does not show what the network knows.
        explained: shares of the variance along x and y, with "pca"; a t-SNE map has no such thing.
    """

    points: pd.DataFrame
    method: str
    neighbour_accuracy: float
    map_accuracy: float
    explained: tuple[float, float] | None = None


def embedding_map(
    embeddings: pd.DataFrame | np.ndarray | Tensor,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    method: str = "tsne",
    seed: int = 0,
    limit: int | None = None,
) -> EmbeddingMap:
    """Lays embeddings out in the plane, and measures what is left of their neighbourhoods.

    Embeddings are scaled to length 1 first. "tsne" reduces them to 50 principal components and arranges these
    (van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008, by the method of Barnes and Hut) with
    perplexity 30, or a third of the other points where they are few; near points of the map are alike, distances
    between its groups mean nothing. "pca" takes the first two principal components.

    The accuracies are those of a vote of the 10 nearest other points, each with the rest as its examples. A tie goes
    to the class, of those tied, that the nearest of the neighbours has.

    One thread does the arranging, so that the same seed gives the same map however many there are. 10,000 points of
    128 numbers take about half a minute of a slow core, and the time grows with the points.

    Args:
        embeddings: the table that `evaluate` returns and writes (index, label, values), or (N, D) numbers.
        labels: a label for each; without it the table's.
        method: "tsne" or "pca".
        seed: of the principal components and of what `limit` draws.
        limit: the most points to show; of more, a part is drawn with the classes in proportion.

    Raises:
        UserError: there are no embeddings, not one label for each, or numbers that are not finite.
    """
    method, seed = check_choice("method", method, METHODS), check_integer("seed", seed, 0)
    frame, values = _read(embeddings, labels)
    names, classes = np.unique(frame["label"].astype(str).to_numpy(dtype=str), return_inverse=True)
    if limit is not None and check_integer("limit", limit, 1) < len(frame):
        kept = np.sort(limited(classes, len(names), limit, seed))
        frame, values, classes = frame.iloc[kept].reset_index(drop=True), values[kept], classes[kept]
    values = np.asarray(normalize(values))
    with threadpool_limits(limits=1):  # several add up in another order, and small differences grow to other maps
        places, shares = np.zeros((len(values), 2)), np.zeros(2)
        if np.abs(values - values[0]).max() > _ROUNDING:
            if method == "pca":
                places, shares = _principal(values, 2, seed)
            else:
                places = _arranged(values, seed)
    frame.insert(1, "x", places[:, 0])
    frame.insert(2, "y", places[:, 1])
    return EmbeddingMap(
        points=frame,
        method=method,
        neighbour_accuracy=_neighbour_accuracy(values, classes),
        map_accuracy=_neighbour_accuracy(places, classes),
        explained=(float(shares[0]), float(shares[1])) if method == "pca" else None,
    )


def nearest(embeddings: pd.DataFrame, query: np.ndarray | Tensor, k: int) -> pd.DataFrame:
    """Returns the `k` embeddings that are most alike to a query, by the cosine of the angle between them.

    Args:
        embeddings: a table with a column `values`, such as `evaluate` returns.
        query: (D,) numbers.
        k: how many; fewer where the table has fewer.

    Returns:
        The table's rows, most alike first, without `values`: rank (from 1), the table's other columns, and similarity
        (-1 to 1; 0 where one of the two is all zeros). The frame's own index is the row's position in the table.

    Raises:
        UserError: the query has another number of values than the embeddings, or some are not finite.
    """
    values = _numbers(embeddings["values"])
    wanted = _numbers([query])
    if wanted.shape[1] != values.shape[1]:
        raise UserError(
            f"the embeddings have {values.shape[1]} values each, and the query has {wanted.shape[1]}. "
            "Embed it with the network that made them."
        )
    similarity = cosine_similarity(values.astype(np.float64), wanted.astype(np.float64))[:, 0].clip(-1, 1)
    order = np.argsort(-similarity, kind="stable")[: check_integer("k", k, 1)]
    found = embeddings.drop(columns="values").iloc[order].set_axis(order)
    found.insert(0, "rank", np.arange(1, len(order) + 1))
    return found.assign(similarity=similarity[order])


def neighbours(subject: str | Path | Run, image: str | Path | int, *, k: int = 8, device: str = "auto") -> pd.DataFrame:
    """Returns the images of a run's evaluated split that its network finds most alike to an image.

    Args:
        subject: a run that has been evaluated.
        image: a file, which is read and resized as `predict` does; or the `index` of an image of the split, which is
            then left out of what is found. Other images with the same pixels are not.
        k: how many; fewer where there are fewer.
        device: where the network embeds a file: "auto", or a device of torch.

    Returns:
        A row an image, most alike first: rank (from 1), index, path where it has one, label, similarity (cosine, -1 to
        1). The frame's own index is the image's position in the split.

    Raises:
        UserError: the run has no evaluation, no image has this index, or the file is no image.
    """
    k = check_integer("k", k, 1)
    run = subject if isinstance(subject, Run) else Run(subject)
    table = _evaluated(run)
    if isinstance(image, (int, np.integer)):
        position = _position(table, image, run)
        found = nearest(table, table["values"].iloc[position], k + 1)
        found = found.drop(index=position, errors="ignore").head(k)
        return found.assign(rank=np.arange(1, len(found) + 1))
    model = load(run).to(resolve_device(device))
    preprocessing, _ = trained_on(model)
    return nearest(table, answer(model, _square(image, preprocessing)[None], preprocessing).embeddings[0], k)


def neighbour_sheet(
    subject: str | Path | Run,
    image: str | Path | int,
    found: pd.DataFrame,
    *,
    data: ImageData | str | Path | None = None,
    data_root: str | Path | None = None,
) -> Image.Image:
    """Returns a picture of an image and of its neighbours after it, as the network sees them.

    Args:
        subject: the run.
        image: what was passed to `neighbours`.
        found: what it returned.
        data: the run's images, or where they are now, if they have moved.
        data_root: where the data sets are now, if they have moved.

    Raises:
        UserError: the run's images are gone or have changed.
    """
    run = subject if isinstance(subject, Run) else Run(subject)
    if not isinstance(data, ImageData):
        data = reload_data(run.settings["data"], source=data, data_root=data_root)
    check_same_data(data, run.settings["data"], data.name)
    split = (run.summary or {})["split"]
    if isinstance(image, (int, np.integer)):
        table = _evaluated(run)
        position = _position(table, image, run)
        query, name = data.squares(split, torch.tensor([position]))[0], f"index {image}"
        caption = f"{name}\n{table['label'].iloc[position]}"
    else:
        query, name = _square(image, trained_on(load(run))[0]), printable(Path(image).name)
        caption = f"the image\n{name}"
    positions = torch.tensor(found.index.to_numpy(dtype=np.int64))
    captions = [f"{row['label']}\n{row['similarity']:.3f}" for row in found.to_dict("records")]
    return contact_sheet(
        [query, *data.squares(split, positions)],
        [caption, *captions],
        columns=min(_SHEET_COLUMNS, 1 + len(found)),
        title=f"{data.name}, {split}\nthe {len(found):,} images most alike to {name}, and their cosine similarity",
    )


def _read(
    embeddings: pd.DataFrame | np.ndarray | Tensor, labels: Sequence[Any] | np.ndarray | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns a row a point (index, label, and what else there is), and their values (N, D)."""
    if isinstance(embeddings, pd.DataFrame):
        needed = ["index", "values", *(["label"] if labels is None else [])]
        if missing := [name for name in needed if name not in embeddings]:
            raise UserError(f"a table of embeddings has index, label and values; this one lacks {', '.join(missing)}.")
        values = _numbers(embeddings["values"])
        frame = embeddings.drop(columns="values").reset_index(drop=True)
    else:
        values = _numbers(embeddings)
        frame = pd.DataFrame({"index": np.arange(len(values))})
    if labels is not None or "label" not in frame:
        count = 0 if labels is None else len(labels)
        if count != len(frame):
            raise UserError(f"there are {len(frame):,} embeddings and {count:,} labels. Give a label for each.")
        frame["label"] = np.asarray(labels)
    return pd.DataFrame(frame, columns=["index", "label", *frame.columns.drop(["index", "label"])]), values


def _numbers(rows: Any) -> np.ndarray:
    """Returns rows of numbers as a finite array (N, D), in float32 or float64."""
    try:
        values = np.stack([np.asarray(row) for row in rows])
        values = values if values.dtype == np.float32 else values.astype(np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 2 or not values.size:
        raise UserError("expected embeddings: at least one row of numbers, all rows of the same length.")
    if bad := int((~np.isfinite(values).all(1)).sum()):
        raise UserError(
            f"{bad:,} of {len(values):,} embeddings hold NaN or infinite values. "
            "The network that made them is damaged, or its training went wrong: look at its loss."
        )
    return values


def _principal(values: np.ndarray, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the principal components (N, components or what there are) and their shares of the variance."""
    pca = PCA(min(components, *values.shape), random_state=seed % 2**32)
    places, shares = pca.fit_transform(values), pca.explained_variance_ratio_
    lacking = max(0, 2 - places.shape[1])  # of points on a line: the plane's other axis
    return np.pad(places, ((0, 0), (0, lacking))), np.pad(shares, (0, lacking))


def _arranged(values: np.ndarray, seed: int) -> np.ndarray:
    """Returns the t-SNE map (N, 2) of two or more points that are not all the same."""
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, max(1.0, (len(values) - 1) / 3)),
        init="pca",
        learning_rate="auto",
        max_iter=_STEPS,
        angle=_ANGLE,
        random_state=seed % 2**32,
    )
    return tsne.fit_transform(_principal(values, _COMPONENTS, seed)[0])


def _neighbour_accuracy(places: np.ndarray, classes: np.ndarray) -> float:
    """Returns the accuracy of the vote of each point's nearest others; see `embedding_map`."""
    count = min(NEIGHBOURS, len(places) - 1)
    if not count:
        return float("nan")
    near = NearestNeighbors(n_neighbors=count).fit(places).kneighbors(return_distance=False)
    # What is above 1 stays below 1 in sum, so that it decides between equal votes only, and there the nearest does.
    weights = 1 + 0.5 ** np.arange(1, count + 1)
    votes = np.zeros((len(places), classes.max() + 1), np.float32)
    np.add.at(votes, (np.arange(len(places))[:, None], classes[near]), weights)
    return float((votes.argmax(1) == classes).mean())


def _evaluated(run: Run) -> pd.DataFrame:
    """Returns the embeddings of the run's own evaluation, with each image's path where it has one."""
    file = run.evaluation() / "embeddings.parquet"
    if run.summary is None or not file.is_file():
        weights_path(run)  # a run that cannot be evaluated yet says so itself
        raise UserError(
            f"{run.path} has no embeddings to compare: it has not been evaluated. "
            f"Run this first: resnetlab evaluate {shlex.quote(str(run.path))}"
        )
    table = pd.read_parquet(file)
    images = pd.read_parquet(run.evaluation() / "per_image.parquet")
    if "path" in images:
        table.insert(1, "path", images["path"])
    return table


def _position(table: pd.DataFrame, index: int | np.integer, run: Run) -> int:
    """Returns which row of the evaluated split has this index."""
    found = np.flatnonzero(table["index"] == int(index))
    if not len(found):
        raise UserError(
            f"no image of the evaluated split has index {index}: it has {len(table):,} images, whose indices are "
            f"between {table['index'].min()} and {table['index'].max()}. Take one from the column index of "
            f"{run.evaluation() / 'per_image.parquet'}."
        )
    return int(found[0])


def _square(image: str | Path, preprocessing: Preprocessing) -> Tensor:
    """Returns a file's pixels as the network wants them, uint8 (C, H, W)."""
    return to_tensor(preprocessing.square(decode_image(Path(image), preprocessing.channels)))
