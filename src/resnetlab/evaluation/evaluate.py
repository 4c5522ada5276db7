"""Evaluation of a trained network on labeled images."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.hub import is_hub_name
from resnetlab.core.packaged import is_packaged
from resnetlab.core.runs import Run, read_summary
from resnetlab.data.load import is_named, load_data, may_be_recorded, reload_data
from resnetlab.data.options import LoadOptions
from resnetlab.data.splits import SPLITS
from resnetlab.data.storage.pack import is_complete
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation import explore as exploring
from resnetlab.evaluation.calibration import expected_calibration_error, maximum_calibration_error, reliability
from resnetlab.evaluation.exported import ExportedNetwork, home_of
from resnetlab.evaluation.forward import Answers, answer_split, places_among, trained_on
from resnetlab.evaluation.metrics import (
    by_class,
    by_image,
    confidences,
    confused_pairs,
    embedding_frame,
    overall,
    wilson_interval,
)
from resnetlab.evaluation.result import Evaluation
from resnetlab.exporting.session import is_exported, open_exported
from resnetlab.models.network import Architecture, Network
from resnetlab.weights.file import load
from resnetlab.weights.tensors import weights_fingerprint

_SHOWN = 20


def evaluate(
    subject: str | Path | Run | Network,
    data: str | Path | ImageData | None = None,
    *,
    model: str | Architecture | nn.Module | None = None,
    split: str | None = None,
    device: str = "auto",
    data_root: str | Path | None = None,
    skip_unreadable: bool = False,
    mirrored: bool = False,
    explore: bool | None = None,
) -> Evaluation:
    """Evaluates a network in float32 and channels_last, and writes the tables if the subject is a run.

    Results on the run's own data go to `evaluation/` (for another split than the default to `evaluation/<split>/`),
    those on another data set to `evaluation/<name>/`, or `evaluation/<name>-2/` if other images have that name.

    Args:
        subject: a run folder, a weights file, a network, what `export` wrote (an .onnx file or its folder), whose
            default images are those of the run in whose folder it is, or the name of a packaged network, whose default
            images are the data set of the same name.
        data: other images than the default; required for a network and a weights file. A folder without split folders
            is one split, unless it contains the run's own images, which keep their splits.
        model: as for `load`, for a run of your own network.
        split: "train", "validation" or "test"; by default test, or validation if there is no test split.
        device: "auto", or a device of torch; a network that you pass stays on its device.
        data_root: the folder of the data sets, if they have moved.
        skip_unreadable: skip unreadable files of other images with a warning instead of raising.
        mirrored: also evaluate the mean of each image and its mirror image (test-time augmentation), as separate
            metrics.
        explore: also compute the map of the embeddings and the diagnostics of the blocks, see `explore.explore`; about
            half a minute for 10,000 images. By default only if the subject is a run.

    Raises:
        UserError: there are no data, the network does not know their classes, or it is untrained.
    """
    if is_exported(subject):
        run, home, network = None, home_of(subject), ExportedNetwork(open_exported(subject))
    else:
        home = run = _run_of(subject)
        network = subject
        if not isinstance(network, Network):
            network = load(run or network, model=model).to(resolve_device(device))
    trained_on(network)  # an error must come before images are read
    if data is None and is_packaged(subject):
        data = str(subject)  # the data set that it was trained on
    if data is None:
        if home is None:
            raise UserError(
                "evaluate needs images, and a network does not record them. Pass data, or a run instead of the network."
            )
        data = reload_data(home.settings["data"], data_root=data_root)
    elif home is not None and not isinstance(data, ImageData) and may_be_recorded(data, home.settings["data"]):
        data = _own_or_whole(data, home, network, data_root, skip_unreadable)
    elif not isinstance(data, ImageData):
        data = _whole(data, network, data_root, skip_unreadable)
    evaluation = evaluate_split(network, data, split, mirrored=mirrored)
    if run is not None:
        if network.stopped_at is not None and run.reload().is_complete and "ended" not in run.settings:
            raise UserError(f"{run.path} was trained to its end while it was evaluated. Evaluate it again.")
        evaluation = evaluation.save(_folder(run, data, str(evaluation.summary["split"])))
    return _explored(evaluation, network, data) if explore or (explore is None and run is not None) else evaluation


def evaluate_split(
    model: Network,
    data: ImageData,
    split: str | None = None,
    *,
    answers: Answers | None = None,
    mirrored: bool = False,
) -> Evaluation:
    """Evaluates a trained network on one split of loaded data, from its outputs if they are given; see `evaluate`.

    The data may lack some of the network's classes, which then have no metrics.
    """
    preprocessing, class_names = trained_on(model)
    _check_fits(model, data)
    name = split or default_split(data)
    if split is None and name not in data.splits:
        raise UserError(
            f"{data.name} has no validation and no test images. Evaluate other images (resnetlab evaluate RUN --data "
            "FOLDER), or the images that it has (--split train)."
        )
    chosen = data.split(name)
    answers = answers or answer_split(model, data, name, preprocessing, label=f"evaluating {data.name}")
    order = torch.tensor(places_among(data.class_names, class_names))
    labels, temperature = order[chosen.labels], model.temperature
    images = by_image(
        answers.logits, labels, chosen.index, class_names, chosen.paths, chosen.digests, temperature=temperature
    )
    sure, correct = images["confidence"].to_numpy(), images["correct"].to_numpy()
    uncalibrated = confidences(answers.logits).numpy()
    low, high = wilson_interval(int(correct.sum()), len(images))
    summary = {
        "split": name,
        "weights": weights_fingerprint(model.saved_module.state_dict()),
        "data": data.fingerprint,
        **dict(zip(("epoch", "epochs"), model.stopped_at or (), strict=False)),
        **overall(answers.logits, labels),
        "top1_low": low,
        "top1_high": high,
        "temperature": temperature,
        "ece": expected_calibration_error(sure, correct),
        "ece_uncalibrated": expected_calibration_error(uncalibrated, correct),
        "mce": maximum_calibration_error(sure, correct),
    }
    if mirrored:
        both = (answers.logits + answer_split(model, data, name, preprocessing, mirrored=True).logits) / 2
        summary |= {f"mirrored_{key}": value for key, value in overall(both, labels).items() if key != "n"}
    return Evaluation(
        summary=summary,
        per_class=by_class(answers.logits, labels, class_names, temperature=temperature),
        per_image=images,
        embeddings=embedding_frame(answers.embeddings, labels, chosen.index, class_names),
        reliability=reliability(sure, correct),
        confused_pairs=confused_pairs(images["label"].tolist(), images["prediction"].tolist(), class_names),
    )


def default_split(data: ImageData) -> str:
    """Returns "test", or "validation" if there is no test split."""
    return "test" if "test" in data.splits else "validation"


def _folder(run: Run, data: ImageData, split: str) -> Path:
    """Returns the folder for an evaluation on these images; other images of the same name keep theirs."""
    if data.fingerprint != run.settings["data"]["fingerprint"]:
        # A name that is a split's would take the place of that split of the run's own.
        name = f"{data.name}-images" if data.name in SPLITS else data.name
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(folder for folder in map(run.evaluation, names) if _is_for(folder, data))
    return run.evaluation(None if split == default_split(data) else split)


def _is_for(folder: Path, data: ImageData) -> bool:
    """Whether a folder has no evaluation, or one of these images."""
    path = folder / "summary.json"
    return not path.is_file() or read_summary(path).get("data", data.fingerprint) == data.fingerprint


def _explored(evaluation: Evaluation, model: Network, data: ImageData) -> Evaluation:
    """Returns an evaluation with its exploration, which joins the tables where these are written already."""
    try:
        found = exploring.explore(model, data, str(evaluation.summary["split"]), evaluation.embeddings)
    except UserError as error:  # of a network that answers NaN; its figures tell that, and stay
        warnings.warn(f"the embedding map and the block diagnostics are left out: {error}", stacklevel=3)
        return evaluation
    if evaluation.folder is not None:
        found.save(evaluation.folder)
    return dataclasses.replace(evaluation, exploration=found)


def _own_or_whole(
    source: str | Path, run: Run, model: Network, data_root: str | Path | None, skip_unreadable: bool
) -> ImageData:
    """Loads data by another path; the run's own images keep their splits, so that no training image is a test image."""
    try:
        return reload_data(run.settings["data"], source=source, data_root=data_root)
    except UserError:
        return _whole(source, model, data_root, skip_unreadable)


def _whole(source: str | Path, model: Network, data_root: str | Path | None, skip_unreadable: bool) -> ImageData:
    """Loads other images than the run's with the network's framing; a folder without splits is one test split."""
    preprocessing, class_names = trained_on(model)
    keeps_splits = is_named(source) or is_complete(Path(source))
    return load_data(
        source,
        data_root=data_root,
        **dataclasses.asdict(preprocessing.framing),
        class_names=class_names if Path(source).is_file() else None,
        test_fraction=LoadOptions.test_fraction if keeps_splits else 1.0,
        skip_unreadable=skip_unreadable,
    )


def _run_of(subject: str | Path | Run | Network) -> Run | None:
    if isinstance(subject, Run):
        return subject
    if not isinstance(subject, (str, Path)) or Path(subject).is_file():
        return None
    return None if is_packaged(subject) or is_hub_name(subject) else Run(subject)


def _check_fits(model: Network, data: ImageData) -> None:
    preprocessing, class_names = trained_on(model)
    known = set(class_names)
    if unknown := [name for name in data.class_names if name not in known]:
        raise UserError(
            f"{data.name} has classes that the network does not know: {_listed(unknown)}. It knows "
            f"{_listed(class_names)}. Rename these classes, or remove their images."
        )
    wanted, found = (dataclasses.asdict(one.framing) for one in (preprocessing, data))
    differing = [name for name in wanted if found[name] != wanted[name]]
    if differing:
        ours, theirs = (", ".join(f"{name}={values[name]!r}" for name in differing) for values in (wanted, found))
        raise UserError(
            f"the network was trained with {ours}, and {data.name} was loaded with {theirs}. Load it with {ours}."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
