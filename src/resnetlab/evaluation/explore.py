"""Exploration of an evaluation: the map of its embeddings, and the diagnostics of each block of the network."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pandas as pd
import torch

from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError
from resnetlab.data.sources.findings import counted
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.diagnostics import diagnose, sample
from resnetlab.evaluation.embeddings import embedding_map
from resnetlab.evaluation.forward import places_among, trained_on
from resnetlab.evaluation.result import Exploration
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary.summary import count

_POINTS = 10_000
_IMAGES, _FEWEST = 512, 32
"""Images for the diagnostics: with fewer than the second, top-1 is too rough for lesions, and there are none."""
_AFFORDABLE = 5e11
"""Multiply-accumulates that the diagnostics may always use: about ten seconds on two slow cores."""
_WORTH_A_MESSAGE = 1000


def explore(
    model: Network | None, data: ImageData, split: str, embeddings: pd.DataFrame, *, seed: int = 0
) -> Exploration:
    """Returns the t-SNE map of an evaluation's embeddings, and the diagnostics of each block of the network.

    The map shows at most 10,000 images. The diagnostics use 512 images of the evaluated split, or fewer if that would
    be more work than 5e11 multiply-accumulates and than the evaluation. With fewer than 32 images there are no
    lesions. Both depend only on the images, the network and the seed.

    Args:
        model: the evaluated network; diagnostics need a `ResNet`, and the map needs none.
        data: the images of the evaluation.
        split: the evaluated split.
        embeddings: of its images, as `evaluate` returned or wrote them.
        seed: of the map, and of the sample of images.

    Raises:
        UserError: the embeddings are not finite, or `data` are not the images of the evaluation.
    """
    evaluated = data.split(split)
    if evaluated.index.tolist() != embeddings["index"].tolist():
        raise UserError(
            f"the {split} split of {data.name} does not have the images that were evaluated. Run evaluate on "
            "this split first."
        )
    if not isinstance(model, ResNet):
        return Exploration(map=embedding_map(embeddings, seed=seed, limit=_POINTS), diagnostics=None)
    macs, blocks = count(model.config, data.image_size)[1], len(model.blocks())
    _, class_names = trained_on(model)
    total = len(evaluated)
    images = affordable(macs, blocks, total)
    has_lesions = images >= min(_FEWEST, total)
    positions = sample(total, images if has_lesions else min(_FEWEST, total), seed)
    order = torch.tensor(places_among(data.class_names, class_names))
    labels = order[evaluated.labels[positions]] if has_lesions else None
    pixels = data.squares(split, positions)
    with (
        _progress(f"mapping {total:,} embeddings, diagnosing {counted(blocks, 'block')}", total),
        ThreadPoolExecutor(1) as pool,
    ):
        # The map uses one thread, so the network can use the others at the same time.
        diagnosing = pool.submit(diagnose, model, pixels, labels, seed=seed)
        arranged = embedding_map(embeddings, seed=seed, limit=_POINTS)
        return Exploration(map=arranged, diagnostics=diagnosing.result())


def affordable(macs: int, blocks: int, evaluated: int) -> int:
    """Returns the number of images for the diagnostics of a network.

    Each image passes through the whole network and, for the lesion of each block, through the layers after it: on
    average half of the network.

    Args:
        macs: multiply-accumulates of the network for one image.
        blocks: number of its blocks.
        evaluated: number of evaluated images: the diagnostics may always take as much work as the evaluation.
    """
    passes = max(_AFFORDABLE / macs, evaluated)
    return min(_IMAGES, evaluated, int(passes / (1 + blocks / 2)))


@contextmanager
def _progress(message: str, images: int) -> Iterator[None]:
    """Shows a message while the context is active."""
    if is_live():
        with console.status(message):
            yield
    else:
        if images >= _WORTH_A_MESSAGE:
            notice(message)
        yield
