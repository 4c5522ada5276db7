"""`evaluate`: a trained network against labelled images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from resnetlab.core.console import render
from resnetlab.core.devices import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, write_json
from resnetlab.core.runs import Run
from resnetlab.data.options import LoadOptions
from resnetlab.data.pack import is_complete
from resnetlab.data.sources import is_named, load_data, may_be_recorded, reload_data
from resnetlab.data.splits import SPLITS
from resnetlab.data.store import ImageData
from resnetlab.evaluation.calibration import expected_calibration_error, maximum_calibration_error, reliability
from resnetlab.evaluation.forward import Answers, answer_split, trained_on
from resnetlab.evaluation.metrics import by_class, by_image, embedding_frame, overall, wilson_interval
from resnetlab.evaluation.pairs import confused_pairs
from resnetlab.models.resnet import ResNet
from resnetlab.weights.file import load

SCHEMA_VERSION = 1
_SHOWN_CLASSES = 40
_TABLES = ("per_class", "per_image", "embeddings", "reliability", "confused_pairs")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures and tables of one network on one split.

    Attributes:
        summary: split, n, top1, top5 (0 to 1), loss; top1_low and top1_high, the 95 % interval of top1 (see
            `metrics.wilson_interval`); ece and mce, the expected and the maximum calibration error (see
            `calibration`); and where asked for mirrored_top1, mirrored_top5 and mirrored_loss, those of the mean
            of the logits of each image and its mirror image.
        per_class: a row a class, see `metrics.by_class`.
        per_image: a row an image, see `metrics.by_image`. Its column group tells equal images of the split: copies
            of a file where photos are kept as files have them, equal pixels as the network sees them otherwise.
        embeddings: a row an image: index, label, values.
        reliability: a row a bin of the confidence, see `calibration.reliability`.
        confused_pairs: a row for each class that was taken for another, see `pairs.confused_pairs`.
        folder: where the tables were written, if they were.
    """

    summary: dict[str, Any]
    per_class: pd.DataFrame
    per_image: pd.DataFrame
    embeddings: pd.DataFrame
    reliability: pd.DataFrame
    confused_pairs: pd.DataFrame
    folder: Path | None = None

    def save(self, folder: Path) -> Evaluation:
        """Writes summary.json and the tables as parquet; the summary last, so that it vouches for them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TABLES:
            table = getattr(self, name).copy(deep=False)
            table.attrs = {"schema": SCHEMA_VERSION}  # goes into the file's metadata
            with atomic(folder / f"{name}.parquet") as temporary:
                table.to_parquet(temporary, index=False)
        write_json(folder / "summary.json", {"schema": SCHEMA_VERSION, **self.summary})
        return dataclasses.replace(self, folder=folder)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary = self.summary
        top5 = f"top-5 {summary['top5']:.2%}, " if len(self.per_class) > 5 else ""  # else it is 1 by definition
        yield (
            f"{summary['split']}: top-1 {summary['top1']:.2%} "
            f"({summary['top1_low']:.2%} to {summary['top1_high']:.2%}), {top5}"
            f"loss {summary['loss']:.4f}, {summary['n']:,} images"
        )
        if "mirrored_top1" in summary:
            yield (
                f"with each image's mirror image too: top-1 {summary['mirrored_top1']:.2%}, "
                f"loss {summary['mirrored_loss']:.4f}"
            )
        table, shown = Table(), self.per_class
        if len(shown) > _SHOWN_CLASSES:
            table.title = f"the {_SHOWN_CLASSES} classes with the lowest F1, of {len(shown)}"
            shown = shown.nsmallest(_SHOWN_CLASSES, "f1")
        table.add_column("class")
        for name in ("support", "precision", "recall", "F1"):
            table.add_column(name, justify="right")
        for row in shown.to_dict("records"):
            figures = (f"{row[name]:.2%}" for name in ("precision", "recall", "f1"))
            table.add_row(escape(str(row["class"])), f"{row['support']:,}", *figures)
        yield table

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def evaluate(
    subject: str | Path | Run | ResNet,
    data: str | Path | ImageData | None = None,
    *,
    split: str | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    skip_unreadable: bool = False,
    mirrored: bool = False,
) -> Evaluation:
    """Evaluates a network in float32, and writes the tables where the subject is a run.

    The run's own data go to `evaluation/` (another split than the usual one to `evaluation/<split>/`),
    another data set to `evaluation/<name>/`.

    Args:
        subject: a run folder, a weights file, or a network.
        data: other images than the run's own; needed where the subject is no run. A folder without
            split folders is taken whole, unless it holds the run's own images: those keep their splits.
        split: "train", "validation" or "test"; without it test, or validation where there is no test.
        device: "auto", or a device of torch; a network is evaluated on the device that it is on.
        data_root: where the data sets are now, if they have moved.
        skip_unreadable: leave unreadable files of other images out with a warning instead of raising.
        mirrored: measure in addition, under names of their own, what the network says when it may look at each
            image and its mirror image (test-time augmentation). Everything else stays as without.

    Raises:
        UserError: no data, other classes than the network's, or a network never trained on data.
    """
    run = _run_of(subject)
    if isinstance(subject, ResNet):
        model = subject
    else:
        model = load(run or subject).to(resolve_device(device))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained_on(model)  # a mistake is told before images are read
    if data is None:
        if run is None:
            raise UserError("evaluate needs data: only a run folder knows which images it was trained on.")
        data = reload_data(run.settings["data"], data_root=data_root)
    elif run is not None and not isinstance(data, ImageData) and may_be_recorded(data, run.settings["data"]):
        data = _own_or_whole(data, run, model, data_root, skip_unreadable)
    elif not isinstance(data, ImageData):
        data = _whole(data, model, data_root, skip_unreadable)
    evaluation = evaluate_split(model, data, split, mirrored=mirrored)
    if run is not None:
        if data.fingerprint != run.settings["data"]["fingerprint"]:
            # A name that is a split's would take the place of that split of the run's own.
            return evaluation.save(run.evaluation(f"{data.name}-images" if data.name in SPLITS else data.name))
        chosen = evaluation.summary["split"]
        return evaluation.save(run.evaluation(None if chosen == default_split(data) else chosen))
    return evaluation


def evaluate_split(
    model: ResNet,
    data: ImageData,
    split: str | None = None,
    *,
    answers: Answers | None = None,
    mirrored: bool = False,
) -> Evaluation:
    """Evaluates a trained network on one split of loaded data, by its answers if they are there; see `evaluate`."""
    preprocessing, class_names = trained_on(model)
    _check_fits(model, data)
    name = split or default_split(data)
    chosen = data.split(name)
    answers = answers or answer_split(model, data, name, preprocessing)
    order = torch.tensor([class_names.index(label) for label in data.class_names])
    labels = order[chosen.labels]
    images = by_image(answers.logits, labels, chosen.index, class_names, chosen.paths, chosen.digests)
    sure, correct = images["confidence"].to_numpy(), images["correct"].to_numpy()
    low, high = wilson_interval(int(correct.sum()), len(images))
    summary = {
        "split": name,
        **overall(answers.logits, labels),
        "top1_low": low,
        "top1_high": high,
        "ece": expected_calibration_error(sure, correct),
        "mce": maximum_calibration_error(sure, correct),
    }
    if mirrored:
        both = (answers.logits + answer_split(model, data, name, preprocessing, mirrored=True).logits) / 2
        summary |= {f"mirrored_{key}": value for key, value in overall(both, labels).items() if key != "n"}
    return Evaluation(
        summary=summary,
        per_class=by_class(answers.logits, labels, class_names),
        per_image=images,
        embeddings=embedding_frame(answers.embeddings, labels, chosen.index, class_names),
        reliability=reliability(sure, correct),
        confused_pairs=confused_pairs(images["label"].tolist(), images["prediction"].tolist(), class_names),
    )


def default_split(data: ImageData) -> str:
    """Returns "test", or "validation" where there is no test split."""
    return "test" if "test" in data.splits else "validation"


def _own_or_whole(
    source: str | Path, run: Run, model: ResNet, data_root: str | Path | None, skip_unreadable: bool
) -> ImageData:
    """The run's own images by another path keep its splits: what was trained on must not pass for test images."""
    try:
        return reload_data(run.settings["data"], source=source, data_root=data_root)
    except UserError:
        return _whole(source, model, data_root, skip_unreadable)


def _whole(source: str | Path, model: ResNet, data_root: str | Path | None, skip_unreadable: bool) -> ImageData:
    """Loads other images than the run's, as the network wants them; a folder without splits is one test split."""
    preprocessing, class_names = trained_on(model)
    keeps_splits = is_named(source) or is_complete(Path(source))
    return load_data(
        source,
        data_root=data_root,
        image_size=preprocessing.image_size,
        channels=preprocessing.channels,
        fit=preprocessing.fit,
        class_names=class_names if Path(source).is_file() else None,
        test_fraction=LoadOptions.test_fraction if keeps_splits else 1.0,
        skip_unreadable=skip_unreadable,
    )


def _run_of(subject: str | Path | Run | ResNet) -> Run | None:
    if isinstance(subject, Run):
        return subject
    if not isinstance(subject, (str, Path)) or Path(subject).is_file():
        return None
    return Run(subject)


def _check_fits(model: ResNet, data: ImageData) -> None:
    preprocessing, class_names = trained_on(model)
    expected, got = set(class_names), set(data.class_names)
    if expected != got:
        raise UserError(
            f"{data.name} has other classes than the network: missing {sorted(expected - got) or 'none'}, "
            f"unknown to the network {sorted(got - expected) or 'none'}. Evaluate on images of the same classes."
        )
    wanted = (preprocessing.channels, preprocessing.image_size)
    if wanted != (data.channels, data.image_size):
        raise UserError(
            f"the network was trained on images of {wanted[0]} channels and {wanted[1]} pixels, and {data.name} has "
            f"{data.channels} and {data.image_size}. Load it with channels={wanted[0]}, image_size={wanted[1]}."
        )
    if preprocessing.fit != data.fit:
        raise UserError(
            f"the network was trained on images made square by fit={preprocessing.fit!r}, and {data.name} has "
            f"fit={data.fit!r}. Load it with fit={preprocessing.fit!r}."
        )
