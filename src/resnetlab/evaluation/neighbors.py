"""The images most similar to an image, by a network's embeddings."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, from_mapping
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.preprocessing import Preprocessing, to_tensor
from resnetlab.core.runs import Run
from resnetlab.data.inspection.contact_sheet import contact_sheet
from resnetlab.data.load import check_same_data, reload_data
from resnetlab.data.storage.reader import decode_image
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.embeddings import finite_rows
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.evaluation.result import read_evaluated
from resnetlab.weights.file import load, weights_path
from resnetlab.weights.tensors import weights_fingerprint

_SHEET_COLUMNS = 9


def nearest(embeddings: pd.DataFrame, query: np.ndarray | Tensor, k: int) -> pd.DataFrame:
    """Returns the `k` embeddings most similar to a query, by cosine similarity.

    Args:
        embeddings: a table with a column `values`, such as `evaluate` returns.
        query: (D,) numbers.
        k: number of rows; fewer if the table has fewer.

    Returns:
        The rows of the table, most similar first, without `values`: rank (from 1), the other columns, and similarity
        (-1 to 1; 0 if one of the two is all zeros). The index of the frame is the row's position in the table.

    Raises:
        UserError: the query has a different number of values, or some values are not finite.
    """
    values = finite_rows(embeddings["values"])
    wanted = finite_rows([query])
    if wanted.shape[1] != values.shape[1]:
        raise UserError(
            f"expected a query of {values.shape[1]} values, the length of the embeddings, got "
            f"{wanted.shape[1]}. Embed it with the same network."
        )
    similarity = cosine_similarity(values.astype(np.float64), wanted.astype(np.float64))[:, 0].clip(-1, 1)
    order = np.argsort(-similarity, kind="stable")[: check_integer("k", k, 1)]
    found = embeddings.drop(columns="values").iloc[order].set_axis(order)
    found.insert(0, "rank", np.arange(1, len(order) + 1))
    return found.assign(similarity=similarity[order])


def neighbors(
    subject: str | Path | Run,
    image: str | Path | int,
    *,
    k: int = 8,
    model: str | nn.Module | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Returns the images of a run's evaluated split that are most similar to an image.

    Args:
        subject: a run that has been evaluated.
        image: a file, which is read and resized as by `predict`; or the `index` of an image of the split, which is
            then left out of the result. Other images with the same pixels are kept.
        k: number of images; fewer if the split has fewer.
        model: as for `load`, for a run of your own network and an image in a file.
        device: for embedding a file: "auto", or a device of torch.

    Returns:
        One row per image, most similar first: rank (from 1), index, path if it has one, label, similarity (cosine, -1
        to 1). The index of the frame is the position of the image in the split.

    Raises:
        UserError: the run has no evaluation, no image has this index, or the file is not an image.
    """
    k = check_integer("k", k, 1)
    run = subject if isinstance(subject, Run) else Run(subject)
    table = _evaluated(run)
    if isinstance(image, (int, np.integer)):
        position = _position(table, image, run)
        found = nearest(table, table["values"].iloc[position], k + 1)
        found = found.drop(index=position, errors="ignore").head(k)
        return found.assign(rank=np.arange(1, len(found) + 1))
    network = load(run, model=model)
    summary = run.summary or {}
    if summary.get("weights") != weights_fingerprint(network.saved_module.state_dict()):
        raise UserError(
            f"{run.path} was trained further after its evaluation, so its embeddings are of another network. Evaluate "
            f"it again: resnetlab evaluate {shlex.quote(str(run.path))}"
        )
    network = network.to(resolve_device(device))
    preprocessing, _ = trained_on(network)
    return nearest(table, answer(network, _square(image, preprocessing)[None], preprocessing).embeddings[0], k)


def neighbor_sheet(
    subject: str | Path | Run,
    image: str | Path | int,
    found: pd.DataFrame,
    *,
    data: ImageData | str | Path | None = None,
    data_root: str | Path | None = None,
) -> Image.Image:
    """Returns a picture of an image and its neighbors, as the network sees them.

    Args:
        subject: the run.
        image: as passed to `neighbors`.
        found: the result of `neighbors`.
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
        preprocessing = from_mapping(Preprocessing, run.settings["preprocessing"], f"{run.path}/run.toml")
        query, name = _square(image, preprocessing), printable(Path(image).name)
        caption = f"the image\n{name}"
    positions = torch.tensor(found.index.to_numpy(dtype=np.int64))
    captions = [f"{row['label']}\n{row['similarity']:.3f}" for row in found.to_dict("records")]
    return contact_sheet(
        [query, *data.squares(split, positions)],
        [caption, *captions],
        columns=min(_SHEET_COLUMNS, 1 + len(found)),
        title=f"{data.name}, {split}\nthe {len(found):,} images most similar to {name}, with cosine similarity",
    )


def _evaluated(run: Run) -> pd.DataFrame:
    """Returns the embeddings of the run's own evaluation, with paths if the images have them."""
    file = run.evaluation() / "embeddings.parquet"
    if run.summary is None or not file.is_file():
        weights_path(run)  # a run that cannot be evaluated yet says so itself
        raise UserError(
            f"{run.path} has no embeddings, because it has not been evaluated. "
            f"Run this first: resnetlab evaluate {shlex.quote(str(run.path))}"
        )
    remedy = f"Evaluate the run again: resnetlab evaluate {shlex.quote(str(run.path))}"
    _, (table, images) = read_evaluated(run.evaluation(), ("embeddings", "per_image"), remedy=remedy)
    if "path" in images:
        table.insert(1, "path", images["path"])
    return table


def _position(table: pd.DataFrame, index: int | np.integer, run: Run) -> int:
    """Returns the row of the evaluated split with this index."""
    found = np.flatnonzero(table["index"] == int(index))
    if not len(found):
        raise UserError(
            f"no image of the evaluated split has index {index}: its {len(table):,} images have indices from "
            f"{table['index'].min()} to {table['index'].max()}. Use one from the column index of "
            f"{run.evaluation() / 'per_image.parquet'}."
        )
    return int(found[0])


def _square(image: str | Path, preprocessing: Preprocessing) -> Tensor:
    """Returns the pixels of a file for the network, uint8 (C, H, W)."""
    return to_tensor(decode_image(Path(image), preprocessing.channels, resizing=preprocessing.resizing))
