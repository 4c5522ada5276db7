"""Runs of networks of timm: trained by the loop that trains ours, and evaluated as ours are."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from resnetlab.core.checks import from_mapping
from resnetlab.core.environment import describe_environment
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.studies.lab.outside import OutsideConfig, OutsideNetwork, load_encoder, suited_machine
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine, choose_machine
from resnetlab.training.prepare import recipe_for
from resnetlab.training.recipe import Recipe
from resnetlab.weights.load import for_channels
from resnetlab.weights.tensors import read_tensors, write_tensors

SCHEMA_VERSION = 1
_LIBRARY = "timm"


def train_outside(
    config: OutsideConfig,
    data: ImageData,
    *,
    recipe: Recipe,
    out: Path,
    seed: int = 0,
    pretrained: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Run:
    """Trains and evaluates a network of timm as `fit` does one of ours, or goes on where that was stopped.

    The run's `model.safetensors` has timm's names, so that timm loads it too.

    Args:
        config: the architecture.
        data: trained on "train", evaluated on "test", or on "validation" where there is no test.
        recipe: its parts are "encoder" and "head".
        out: the run folder; what is recorded in one that was begun holds.
        seed: of initial weights, order and augmentation.
        pretrained: weights to begin with, see `load_encoder`.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64"; see `suited_machine`.

    Raises:
        UserError: something does not fit.
        Interrupted: SIGINT or SIGTERM came; the same call goes on.
    """
    begun = any((out / "checkpoints").glob("*"))
    model = config.build(seed)
    run = Run(out) if begun else _begin(model, config, data, recipe, out, seed, pretrained, device, precision)
    settings, where = run.settings, f"{out}/run.toml"
    model.class_names = data.class_names
    model.preprocessing = from_mapping(Preprocessing, settings["preprocessing"], where)
    with run.locked():
        training = Training(
            model,
            data,
            preprocessing=model.preprocessing,
            recipe=Recipe.from_dict(settings["recipe"]),
            machine=from_mapping(Machine, settings["machine"], where),
            seed=settings["seed"],
            run=run,
            quiet=True,
        )
        if begun:
            training.restore()
        training.train()
    description = {
        "schema": SCHEMA_VERSION,
        "library": _LIBRARY,
        "network": asdict(config),
        "class_names": list(data.class_names),
        "preprocessing": settings["preprocessing"],
    }
    write_tensors(run.weights, model.network.state_dict(), description)
    evaluate_split(model, data).save(run.evaluation())
    return run


def is_outside(run: Run) -> bool:
    """Whether a run is of a network of timm."""
    return run.settings["model"].get("library") == _LIBRARY


def load_outside(run: Run) -> OutsideNetwork:
    """Returns the trained network of a run of `train_outside`, in evaluation mode and float32, on the CPU."""
    settings, where = run.settings, f"{run.path}/run.toml"
    model = from_mapping(OutsideConfig, settings["model"]["config"], where).build()
    model.network.load_state_dict(read_tensors(run.weights)[0])
    model.class_names = tuple(settings["data"]["class_names"])
    model.preprocessing = from_mapping(Preprocessing, settings["preprocessing"], where)
    return model.eval()


def _begin(
    model: OutsideNetwork, config: OutsideConfig, data: ImageData, recipe: Recipe, out: Path, seed: int,
    pretrained: str | Path | None, device: str, precision: str,
) -> Run:  # fmt: skip
    """Makes the run folder of a new training, whose network has the weights to begin with then."""
    preprocessing = data.preprocessing
    theirs = None if pretrained is None else load_encoder(model, pretrained)
    if theirs is not None:
        theirs = for_channels(theirs, preprocessing.channels)
        preprocessing = dataclasses.replace(preprocessing, mean=theirs.mean, std=theirs.std)
    described = {"name": f"{_LIBRARY}/{config.name}", "library": _LIBRARY, "config": asdict(config)}
    settings = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "model": described if pretrained is None else {**described, "pretrained": str(pretrained)},
        "data": data.describe(),
        "preprocessing": asdict(preprocessing),
        "recipe": recipe_for(recipe, data, model).to_dict(),
        "machine": suited_machine(choose_machine(device, precision)).to_dict(),
    }
    return Run.create(out, settings, describe_environment())
