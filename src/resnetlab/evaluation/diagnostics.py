"""Diagnostics of residual blocks: what each adds to its shortcut, how its layers respond, and what it is worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, check_schema, check_shape
from resnetlab.core.console import render
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, printable
from resnetlab.core.randomness import generator
from resnetlab.core.tables import read_table
from resnetlab.data.sources.findings import counted
from resnetlab.evaluation.forward import check_images, evaluating, normalized_batches
from resnetlab.evaluation.metrics import overall
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.parts import is_convolution
from resnetlab.models.resnet import ResNet
from resnetlab.models.shortcuts import Projection, ZeroPaddedIdentity
from resnetlab.models.surgery import ShortcutOnly

SCHEMA_VERSION = 1
FEW_IMAGES = 300
"""With fewer, a block's effect on the accuracy is that of a few images."""
_FIGURES = ("ratio", "cosine", "variance_share", "top1_cost", "loss_cost")
_COLUMNS = {
    "blocks": {"block": "text", "kind": "text", **dict.fromkeys(_FIGURES, "number")},
    "responses": {"layer": "text", "response": "number", "rank": "number"},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnostics:
    """The result of `diagnose`.

    Attributes:
        images: number of images used.
        top1, loss: of the whole network on them; None without labels, and then there are no lesions.
        blocks: one row per block, in order; a value that does not exist is NaN:
            block: its name in `ResNet.features`.
            kind: of its shortcut: identity, padded, projection or plain (none); or removed by surgery.
            ratio: |branch| / |shortcut|, norms over C, H and W, mean over images.
            cosine: of the angle between branch and shortcut, mean over images.
            variance_share: fraction of the variance of the sum before activation that is due to the branch; the rest
                is due to the shortcut: cov(branch, sum) / var(sum) over images and positions, each summed over
                channels. It is below 0 or above 1 if branch and shortcut are negatively correlated enough.
            lesion_top1, lesion_loss: of the network with this block reduced to its shortcut (Veit et al. 2016).
            top1_cost, loss_cost: the cost of the lesion: the decrease of top-1 and the increase of the loss.
        responses: one row per 3x3 convolution, in order: layer, response, rank (1 is the largest). The response is the
            standard deviation over images and positions, mean over channels, of the output after normalization and
            before activation or addition (He et al. 2016, Fig. 7). With pre-activation, a normalization belongs to the
            following convolution, so the response is that of the convolution's own output: compare such networks only
            with each other.
    """

    images: int
    top1: float | None
    loss: float | None
    blocks: pd.DataFrame
    responses: pd.DataFrame

    @property
    def effective_depth(self) -> int | None:
        """Number of blocks whose single lesion costs more than one point of top-1; None without labels.

        Plain blocks that change the shape cannot be removed and are not counted.
        """
        if self.top1 is None:
            return None
        lost = (self.blocks["top1_cost"].to_numpy() * self.images).round()  # whole images: exact at one point
        return int((lost > self.images / 100).sum())

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Writes blocks.parquet and responses.parquet, with `facts` in their metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        summary = {"schema": SCHEMA_VERSION, "images": self.images, "top1": self.top1, "loss": self.loss}
        summary |= facts or {}
        for name in ("responses", "blocks"):
            table = getattr(self, name).copy(deep=False)
            table.attrs = summary  # goes into the file's metadata
            with atomic(folder / f"{name}.parquet") as temporary:
                table.to_parquet(temporary, index=False)

    @classmethod
    def load(cls, folder: Path) -> Diagnostics:
        """Reads what `save` wrote."""
        tables = {}
        for name in ("blocks", "responses"):
            path = folder / f"{name}.parquet"
            if not path.is_file():
                raise UserError(f"no diagnostics in {folder}: {path.name} not found. Run diagnose first.")
            tables[name] = read_table(path, _COLUMNS[name])
            check_schema(path, tables[name].attrs.get("schema"), SCHEMA_VERSION)
        summary = tables["blocks"].attrs
        known = {name: value for name, value in summary.items() if value is not None}
        check_shape(printable(folder / "blocks.parquet"), known, {"images": int, "top1?": float, "loss?": float})
        return cls(images=summary["images"], top1=summary.get("top1"), loss=summary.get("loss"), **tables)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.top1 is None:
            yield f"{self.images:,} images, without lesions"
        else:
            yield (
                f"{self.images:,} images: top-1 {self.top1:.2%}, loss {self.loss:.4f}; "
                f"{self.effective_depth} of {counted(len(self.blocks), 'block')} cost more than one point of top-1 "
                "when removed"
            )
            if self.images < FEW_IMAGES:
                yield f"There are few images: one image is {100 / self.images:.1f} points."
        table = Table()
        table.add_column("block")
        table.add_column("shortcut")
        for name in ("ratio", "cosine", "variance", "points lost", "loss cost"):
            table.add_column(name, justify="right")
        for row in self.blocks.to_dict("records"):
            figures = [_shown(row[name], ".3f") for name in ("ratio", "cosine", "variance_share")]
            costs = [_shown(100 * row["top1_cost"], ".2f"), _shown(row["loss_cost"], ".4f")]
            table.add_row(str(row["block"]), str(row["kind"]), *figures, *costs)
        yield table
        if "plain" in set(self.blocks["kind"]):
            yield "Plain blocks that change the shape cannot be removed."
        if len(self.responses):
            ranked = self.responses.sort_values("rank")
            ends = [f"{row['response']:.3f} ({row['layer']})" for row in ranked.iloc[[0, -1]].to_dict("records")]
            yield f"responses of {len(ranked)} 3x3 convolutions: from {ends[1]} to {ends[0]}"

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def diagnose(
    model: ResNet, images: Tensor, labels: Tensor | None = None, *, at_most: int = 512, seed: int = 0
) -> Diagnostics:
    """Returns diagnostics of each block of a trained network, on a sample of images.

    Modes, buffers and gradients of the network, and the random state, do not change.

    Args:
        model: a trained network.
        images: uint8 (N, C, H, W), of the network's size.
        labels: int64 (N,), positions in `model.class_names`; without them there are no lesions.
        at_most: maximum number of images, chosen by `sample`.
        seed: of the sample.

    Raises:
        UserError: the network is untrained, or images or labels do not fit it.
    """
    preprocessing = check_images(model, images)
    _check_labels(model, labels, len(images))
    positions = sample(len(images), at_most, seed)
    images = images[positions]
    names = [name for name, _ in model.blocks()]
    shares = {name: _BlockShare() for name in names}
    spreads = {name: _Comoment() for name in response_layers(model)}
    logits: dict[str | None, list[Tensor]] = {}
    with torch.inference_mode(), evaluating(model):
        for _, batch in normalized_batches(model, images, preprocessing):
            with _listening(model, spreads):
                taps = model.features(batch)
            for name in names:
                if f"{name}.shortcut" in taps:
                    shares[name].add(taps[f"{name}.branch"], taps[f"{name}.shortcut"], taps[f"{name}.sum"])
            if labels is not None:
                logits.setdefault(None, []).append(taps["logits"].float().cpu())
                for name, answers in _lesioned(model, taps):
                    logits.setdefault(name, []).append(answers.float().cpu())
    figures = {}
    if labels is not None:
        sampled = labels.cpu()[positions]
        figures = {name: overall(torch.cat(batches), sampled) for name, batches in logits.items()}
    whole = figures.get(None, {"top1": None, "loss": None})
    rows = [
        {"block": name, "kind": _kind(block), **shares[name].figures(), **_costs(whole, figures.get(name))}
        for name, block in model.blocks()
    ]
    deviations = np.array([float(spread.deviation().mean()) for spread in spreads.values()], dtype=float)
    responses = pd.DataFrame({"layer": list(spreads), "response": deviations})
    responses["rank"] = responses["response"].rank(method="first", ascending=False, na_option="bottom").astype("int64")
    return Diagnostics(
        images=len(images), top1=whole["top1"], loss=whole["loss"], blocks=pd.DataFrame(rows), responses=responses
    )


def sample(count: int, at_most: int = 512, seed: int = 0) -> Tensor:
    """Returns at most `at_most` of `count` positions, int64, ascending; the same for the same arguments."""
    at_most = check_integer("at_most", at_most, 1)
    if count <= at_most:
        return torch.arange(count)
    drawn = generator(seed, "diagnostics").choice(count, at_most, replace=False)
    return torch.from_numpy(drawn).sort().values


def response_layers(model: ResNet) -> dict[str, nn.Module]:
    """Returns the module whose output is the response of each 3x3 convolution, by its name; see `Diagnostics`."""
    layers: dict[str, nn.Module] = {}
    stem = [
        (name, layer)
        for module in model.stem_names
        for name, layer in model.get_submodule(module).named_modules(prefix=module)
        if next(layer.children(), None) is None
    ]
    for (name, layer), (_, following) in itertools.pairwise([*stem, ("", nn.Identity())]):
        if _is_3x3(layer):  # the stem's layers are in the order in which they run
            is_normalized = isinstance(getattr(following, "running_var", None), Tensor)
            layers[f"stem.{name}"] = following if is_normalized else layer
    for name, block in model.blocks():
        for number in range(1, block.convolutions + 1) if isinstance(block, ResidualBlock) else ():
            convolution = block.get_submodule(f"conv{number}")
            if _is_3x3(convolution):
                taken = convolution if block.preactivation else block.get_submodule(f"bn{number}")
                layers[f"{name}.conv{number}"] = taken
    return layers


def _lesioned(model: ResNet, taps: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the logits without each block in turn.

    The layers before a block do not change, so only those after it are computed again.
    """
    blocks = model.blocks()
    *closing, head = model.sections()["head"]
    for number, (name, block) in enumerate(blocks):
        arriving = taps[blocks[number - 1][0] if number else "stem"]
        if not isinstance(block, ResidualBlock) or (block.downsample is None and arriving.shape != taps[name].shape):
            continue
        x = ShortcutOnly(block)(arriving)
        for layer in (*(later for _, later in blocks[number + 1 :]), *closing):
            x = layer(x)
        yield name, head(x.flatten(1))


def _check_labels(model: ResNet, labels: Tensor | None, count: int) -> None:
    if labels is None:
        return
    most = model.config.num_classes
    fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == (count,)
    if not fits or labels.min() < 0 or labels.max() >= most:
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(
            f"labels must be a tensor of {count} int64 values from 0 to {most - 1}, one per image, got {got}. "
            "Labels are indices into model.class_names. Labels are needed only to "
            "measure how much accuracy falls without a block."
        )


def _is_3x3(layer: nn.Module) -> bool:
    return is_convolution(layer) and layer.get_parameter("weight").shape[2:] == (3, 3)


def _shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _costs(whole: dict[str, Any], lesion: dict[str, Any] | None) -> dict[str, float]:
    if lesion is None:
        return dict.fromkeys(("lesion_top1", "lesion_loss", "top1_cost", "loss_cost"), float("nan"))
    return {
        "lesion_top1": lesion["top1"],
        "lesion_loss": lesion["loss"],
        "top1_cost": whole["top1"] - lesion["top1"],
        "loss_cost": lesion["loss"] - whole["loss"],
    }


def _kind(block: nn.Module) -> str:
    if not isinstance(block, ResidualBlock):
        return "removed"
    if block.downsample is None:
        return "plain"
    if isinstance(block.downsample, Projection):
        return "projection"
    return "padded" if isinstance(block.downsample, ZeroPaddedIdentity) else "identity"


@contextmanager
def _listening(model: ResNet, spreads: dict[str, _Comoment]) -> Iterator[None]:
    """Adds the outputs of the response layers while the context is active."""
    handles = [
        layer.register_forward_hook(lambda _, __, output, spread=spreads[name]: spread.add(output, output))
        for name, layer in response_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Comoment:
    """Sum over images and positions of (x - mean x)(y - mean y) per channel, over batches (Chan et al. 1979).

    Values are centered before they are multiplied, so no digits are lost. Sums are in double precision, on the CPU.
    """

    def __init__(self) -> None:
        self.count = 0
        self.means = torch.zeros(2, 1, dtype=torch.float64)
        self.total = torch.zeros(1, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds a batch of each, (N, C, H, W)."""
        means = [value.float().mean((0, 2, 3), keepdim=True) for value in (x, y)]
        total = ((x - means[0]) * (y - means[1])).sum((0, 2, 3)).cpu().double()
        mean = torch.stack([mean.flatten() for mean in means]).cpu().double()
        count = x.numel() // x.shape[1]
        step, total_count = mean - self.means, self.count + count
        self.total = self.total + total + step[0] * step[1] * (self.count * count / total_count)
        self.means = self.means + step * (count / total_count)
        self.count = total_count

    def deviation(self) -> Tensor:
        """Returns the standard deviation (divided by n) of each channel, if x and y are the same."""
        return (self.total / self.count).sqrt()


class _BlockShare:
    """Statistics of the branch of one block compared with its shortcut."""

    def __init__(self) -> None:
        self.ratios: list[Tensor] = []
        self.cosines: list[Tensor] = []
        self.of_branch, self.of_sum = _Comoment(), _Comoment()

    def add(self, branch: Tensor, shortcut: Tensor, total: Tensor) -> None:
        """Adds a batch of each, (N, C, H, W)."""
        flat_branch, flat_shortcut = branch.flatten(1).float(), shortcut.flatten(1).float()
        norms = flat_branch.norm(dim=1), flat_shortcut.norm(dim=1)
        self.ratios.append((norms[0] / norms[1]).cpu().double())
        self.cosines.append(((flat_branch * flat_shortcut).sum(1) / (norms[0] * norms[1])).cpu().double())
        self.of_branch.add(branch, total)
        self.of_sum.add(total, total)

    def figures(self) -> dict[str, float]:
        """Returns ratio, cosine and variance_share, see `Diagnostics`; NaN without batches."""
        if not self.ratios:
            return dict.fromkeys(("ratio", "cosine", "variance_share"), float("nan"))
        return {
            "ratio": float(torch.cat(self.ratios).mean()),
            "cosine": float(torch.cat(self.cosines).nanmean()),  # a branch of 0 has no direction
            "variance_share": float(self.of_branch.total.sum() / self.of_sum.total.sum()),
        }
