"""What there is to explore in an evaluation: the map of its embeddings, and what each block of the network does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import diagnose, sample
from resnetlab.evaluation.embeddings import embedding_map
from resnetlab.evaluation.forward import trained_on
from resnetlab.evaluation.result import Evaluation, Exploration
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary.summary import count

_POINTS = 10_000
_IMAGES, _FEWEST = 512, 32
"""Images to diagnose: with fewer than the second, a point of top-1 is no figure, and there are no lesions."""
_AFFORDABLE = 1.5e12
"""Multiply-accumulates that the diagnostics may always take: about half a minute of two slow cores."""
_WORTH_A_WORD = 1000


def explore(model: Network, data: ImageData, evaluation: Evaluation, *, seed: int = 0) -> Exploration:
    """Returns the t-SNE map of an evaluation's embeddings, and what each block of the network does.

    The map shows at most 10,000 images. The diagnostics look at 512 images of the evaluated split, or at fewer where
    that would be more work than 1.5e12 multiply-accumulates and than the evaluation was; below 32, lesions are left
    out. Both depend on the images, the network and the seed only.

    Args:
        model: the network that was evaluated; only a `ResNet` is diagnosed.
        data: the images that it was evaluated on.
        evaluation: what `evaluate` returned.
        seed: of the map, and of the images that are drawn.

    Raises:
        UserError: the embeddings are not finite, or `data` are not the images of the evaluation.
    """
    return _explore(model, data, str(evaluation.summary["split"]), evaluation.embeddings, seed)


def exploration_of(folder: Path, model: Network, data: ImageData, *, seed: int = 0) -> Exploration:
    """Returns the exploration of an evaluation that was saved; where it has none, makes it and writes it beside.

    Args:
        folder: of the evaluation, such as `run.evaluation()`.
        model: as in `explore`.
        data: likewise.
        seed: likewise; what is there already has the seed it was made with.

    Raises:
        UserError: as of `explore`.
    """
    found = Exploration.load(folder)
    if found is None:
        split = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["split"]
        found = _explore(model, data, split, pd.read_parquet(folder / "embeddings.parquet"), seed)
        found.save(folder)
    return found


def affordable(macs: int, blocks: int, evaluated: int) -> int:
    """Returns on how many images a network is diagnosed.

    With each image go the whole network and, for the lesion of each block, what comes after it: in the mean, half of
    the network.

    Args:
        macs: multiply-accumulates of the network for an image.
        blocks: how many it has.
        evaluated: how many images were evaluated: as much work is taken as that was, or more where it was little.
    """
    passes = max(_AFFORDABLE / macs, evaluated)
    return min(_IMAGES, evaluated, int(passes / (1 + blocks / 2)))


def _explore(model: Network, data: ImageData, name: str, embeddings: pd.DataFrame, seed: int) -> Exploration:
    split = data.split(name)
    if split.index.tolist() != embeddings["index"].tolist():
        raise UserError(
            f"the {name} split of {data.name} has other images than the evaluation. Evaluate again on these images."
        )
    _, class_names = trained_on(model)
    if not isinstance(model, ResNet):
        return Exploration(map=embedding_map(embeddings, seed=seed, limit=_POINTS), diagnostics=None)
    macs, blocks = count(model.config, data.image_size)[1], len(model.blocks())
    images = affordable(macs, blocks, len(split))
    has_lesions = images >= min(_FEWEST, len(split))
    positions = sample(len(split), images if has_lesions else min(_FEWEST, len(split)), seed)
    order = torch.tensor([class_names.index(label) for label in data.class_names])
    labels = order[split.labels[positions]] if has_lesions else None
    pixels = data.squares(name, positions)
    with (
        _told(f"mapping {len(split):,} embeddings, diagnosing {blocks:,} blocks", len(split)),
        ThreadPoolExecutor(1) as pool,
    ):
        # The map takes one thread whatever there are, so that the network may have the others meanwhile.
        diagnosing = pool.submit(diagnose, model, pixels, labels, seed=seed)
        arranged = embedding_map(embeddings, seed=seed, limit=_POINTS)
        return Exploration(map=arranged, diagnostics=diagnosing.result())


@contextmanager
def _told(message: str, images: int) -> Iterator[None]:
    """Says what takes its time within the block."""
    if is_live():
        with console.status(message):
            yield
    else:
        if images >= _WORTH_A_WORD:
            notice(message)
        yield
