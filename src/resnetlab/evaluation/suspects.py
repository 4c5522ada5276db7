"""Images whose label a trained network doubts, most suspect first; nothing is deleted or changed."""

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
    """Returns the images whose label the network doubts, ranked by the margin of the logits.

    The margin is the label's logit minus the highest of another class: ln p(label) - ln p(other class). Pleiss et
    al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020, take its mean over the
    epochs of a training; here it is the finished network's. Images with a negative one are those that the network
    puts into another class. Of these, `likely` marks the ones that confident learning counts as mislabeled: the
    network is at least as sure of the other class as it is, in the mean, of the images that carry that class's label
    (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021; other
    than there, only the most probable class is compared).

    The split is meant to be one that the network was not fitted to: validation, test, or other images. A network
    learns the labels it is trained on, false ones included. On the training split the ranking still works as long
    as they are not learned by heart, so with few epochs and label smoothing, and is weaker; for a sharp one, train on
    one half of the images and rank the other. `evaluate` ranks all images, doubted or not, in the column suspicion of
    its table by image: the margin with the opposite sign.

    Args:
        model: trained on the same classes.
        data: loaded with the network's channels and image size.
        split: which images.

    Returns:
        A row an image, most suspect first: index, path where it has one, label, prediction, confidence (of
        the prediction), label_probability, score (the margin), likely. The frame's own index is the image's
        position in the split.

    Raises:
        UserError: the classes or the size are not the network's, or it was never trained on data.
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
            # A class that no image is labeled with has no usual confidence: nothing is likely to be of it.
            confidence >= needed.get(name, np.inf)
            for name, confidence in zip(columns["prediction"], columns["confidence"], strict=True)
        ]
    )
    doubted = np.flatnonzero(columns["prediction"] != columns["label"])
    order = doubted[np.argsort(columns["score"][doubted], kind="stable")]
    return pd.DataFrame({name: values[order] for name, values in columns.items()}, index=order)


def suspect_sheet(data: ImageData, split: str, suspects: pd.DataFrame, count: int = 40) -> Image.Image:
    """Returns a picture of the first `count` suspects, each with its label and what the network takes it for.

    Args:
        data: where the images are.
        split: the split that `suspects` are of.
        suspects: what `suspect_labels` returned for them.
        count: how many to show.
    """
    shown = suspects.head(count)
    captions = [_caption(row) for row in shown.to_dict("records")]
    title = f"{data.name}, {split}\n{len(shown):,} of {len(suspects):,} images whose label the network doubts"
    positions = torch.tensor(shown.index.to_numpy(dtype=np.int64))
    return contact_sheet(list(data.squares(split, positions)), captions, columns=8, title=title)


def _caption(row: dict[Hashable, object]) -> str:
    return f"labeled {row['label']}\nseen as {row['prediction']}, {row['confidence']:.0%}"
