"""Images that are probably mislabeled, by the outputs of a trained network; nothing is deleted or changed."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
import torch
from PIL import Image

from resnetlab.data.inspection.contact_sheet import contact_sheet
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.models.network import Network


def suspect_labels(model: Network, data: ImageData, split: str) -> pd.DataFrame:
    """Returns the images that the network assigns to another class than their label, ranked by margin.

    The margin is the label's logit minus the highest of another class: ln p(label) - ln p(other class). Pleiss et
    al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020, take its mean over the
    epochs of a training; here it is that of the finished network. Images with a negative margin are those that the
    network assigns to another class. Among them, `likely` marks those that confident learning counts as mislabeled: the
    network is at least as confident in the other class as it is, on average, for the images with that label
    (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021; here only
    the most probable class is compared).

    Use a split that the network was not trained on: validation, test, or other images. A network also learns false
    labels that it is trained on. On the training split, the ranking works only while labels are not memorized (few
    epochs, label smoothing), and is weaker. For a better one, train on one half of the images and rank the other.
    `evaluate` ranks all images in the column suspicion of its per-image table: the margin with the opposite sign.

    Args:
        model: trained on the same classes.
        data: loaded with the network's channels and image size.
        split: name of the split.

    Returns:
        One row per image, lowest margin first: index, path if it has one, label, prediction, confidence (of the
        prediction), label_probability, score (the margin), likely. The index of the frame is the position of the image
        in the split.

    Raises:
        UserError: classes or image size differ from the network's, or it is untrained.
    """
    images = evaluate_split(model, data, split).per_image
    kept = ("index", "path", "label", "prediction", "confidence", "label_probability")
    columns = {name: images[name].to_numpy() for name in kept if name in images}
    columns["score"] = -images["suspicion"].to_numpy()
    names, classes = np.unique(columns["label"].astype(str), return_inverse=True)
    usual = np.bincount(classes, columns["label_probability"]) / np.bincount(classes)
    needed = dict(zip(names.tolist(), usual.tolist(), strict=True))
    columns["likely"] = np.array(
        [
            # A class without labeled images has no usual confidence, so no image is likely to belong to it.
            confidence >= needed.get(name, np.inf)
            for name, confidence in zip(columns["prediction"], columns["confidence"], strict=True)
        ]
    )
    doubted = np.flatnonzero(columns["prediction"] != columns["label"])
    order = doubted[np.argsort(columns["score"][doubted], kind="stable")]
    return pd.DataFrame({name: values[order] for name, values in columns.items()}, index=order)


def suspect_sheet(data: ImageData, split: str, suspects: pd.DataFrame, count: int = 40) -> Image.Image:
    """Returns a picture of the first `count` suspects, each with its label and prediction.

    Args:
        data: the images.
        split: the split of the suspects.
        suspects: the result of `suspect_labels`.
        count: number of images to show.
    """
    shown = suspects.head(count)
    captions = [_caption(row) for row in shown.to_dict("records")]
    title = f"{data.name}, {split}\n{len(shown):,} of {len(suspects):,} images that are probably mislabeled"
    positions = torch.tensor(shown.index.to_numpy(dtype=np.int64))
    return contact_sheet(list(data.squares(split, positions)), captions, columns=8, title=title)


def _caption(row: dict[Hashable, object]) -> str:
    return f"labeled {row['label']}\npredicted {row['prediction']}, {row['confidence']:.0%}"
