"""Export to a model hub: the folder of a repository, which ResNetLab and timm load, and its upload."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json, write_text
from resnetlab.core.hub import PREFIX, repository_of
from resnetlab.core.runs import Run
from resnetlab.evaluation.forward import trained_on
from resnetlab.exporting.card import hub_card
from resnetlab.exporting.export import Export
from resnetlab.exporting.options import ExportOptions
from resnetlab.exporting.origin import default_folder, describe, opened, without_folder, without_path
from resnetlab.models.adapters import TimmConfig, pretrained_config
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet
from resnetlab.weights.convert import form_map, write_form
from resnetlab.weights.file import weights_path, write_network
from resnetlab.weights.hub import CONFIG, WEIGHTS, endpoint
from resnetlab.weights.maps import KeyMap
from resnetlab.weights.published import TIMM_NETWORKS, network_among
from resnetlab.weights.tensors import read_description, read_header

CARD, TIMM_WEIGHTS = "README.md", "timm.safetensors"
_PACKAGES = ("resnetlab", "torch")
_CROP_MODES = {"crop": "center", "squash": "squash"}
"""What timm calls our crop modes."""


def write(source: str | Path | Run | Network, *, to: str, out: Path | None = None, options: ExportOptions) -> Export:
    """Writes the folder of a repository, and uploads it if `options.publish` is set.

    Args:
        source: a run, a weights file, the name of a packaged network, or a trained network.
        to: "hub:USER/NAME".
        out: the folder; default: RUN/export/hub/, or for a file NAME-hub/ next to it.
        options: its `license`, `model` and `publish` are used.

    Raises:
        UserError: the name cannot be that of a repository, the network is not trained, or the upload failed.
    """
    repository = repository_of(to)
    if options.publish:
        import_extra("huggingface_hub", "hub")
    run, network = opened(source, options.model)
    folder = out or _default_folder(source, run)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out expects a folder, got the file {folder}.")
    record = describe(source, run, network, options.license, _PACKAGES)
    record["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    names, is_timms = _write_files(folder, source if run is None else run, network)
    write_text(folder / CARD, hub_card(record, run, repository, in_timm=is_timms))
    names = (*names, CARD)
    lines = [f"written  {folder / name}  {(folder / name).stat().st_size / 1e3:,.0f} kB" for name in names]
    if options.publish:
        lines.append(f"published  {_upload(repository, folder, names)}")
    else:
        lines.append(f"not uploaded: with --publish, these files go to {PREFIX}{repository}, for everyone to see")
    return Export(path=folder, message="\n".join(lines))


def _default_folder(source: Any, run: Run | None) -> Path:
    """Returns RUN/export/hub; for a file NAME-hub next to it; for a network "hub" in this folder."""
    other = default_folder(source, run)
    return other / "hub" if run is not None else other.with_name(f"{other.name.removesuffix('export')}hub")


def _write_files(folder: Path, source: Any, network: Network) -> tuple[tuple[str, ...], bool]:
    """Writes the weights and config.json; returns the names of the files, and whether timm has the network."""
    config, keys = network.config, None
    preprocessing, class_names = trained_on(network)
    size, channels = preprocessing.image_size, preprocessing.channels
    described: dict[str, Any] = {"num_classes": len(class_names), "label_names": list(class_names)}
    images = {
        "input_size": [channels, size, size],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": _CROP_MODES[preprocessing.crop_mode],
    }
    if isinstance(config, TimmConfig):
        known = pretrained_config(config)
        images |= {name: known[name] for name in ("first_conv", "classifier", "fixed_input_size") if name in known}
        described["architecture"] = config.name
    elif isinstance(network, ResNet) and (name := network_among(network.config, TIMM_NETWORKS)):
        keys = form_map("timm", network)
        images |= {"first_conv": _layer(network, keys, dimensions=4), "classifier": _layer(network, keys, dimensions=2)}
        described["architecture"] = name
    else:
        described["library_name"], described["network"] = "resnetlab", without_path(config).to_dict()
    if channels != 3:
        described["model_args"] = {"in_chans": channels}
    names = [WEIGHTS, CONFIG]
    folder.mkdir(parents=True, exist_ok=True)
    if keys is not None and any(ours != theirs for ours, theirs in keys.names.items()):
        images["hf_hub_filename"] = TIMM_WEIGHTS
        write_form(folder / TIMM_WEIGHTS, "timm", keys.to_theirs(network.state_dict()))
        names.append(TIMM_WEIGHTS)
    shared: Any = copy.copy(network)
    shared.config = without_path(config)
    write_network(folder / WEIGHTS, shared, _origin(source))
    write_json(folder / CONFIG, {**described, "pretrained_cfg": images})
    return tuple(names), "architecture" in described


def _layer(network: ResNet, keys: KeyMap, *, dimensions: int) -> str:
    """Returns timm's name of the first layer whose weights have so many dimensions."""
    name = next(name for name, value in network.state_dict().items() if value.ndim == dimensions)
    return keys.names[name].removesuffix(".weight")


def _origin(source: Any) -> dict[str, Any]:
    """Returns what the network's own file says about its origin, without paths of this machine."""
    if isinstance(source, Network):
        stopped = source.stopped_at
        return {} if stopped is None else {"training": dict(zip(("epoch", "epochs"), stopped, strict=True))}
    path = weights_path(source)
    description, _ = read_description(path, read_header(path).metadata)
    made = dict(description.get("provenance") or {})
    if "network" in made:
        made["network"] = without_folder(str(made["network"]))
    if "source" in made:  # of a converted file
        made["source"] = Path(str(made["source"])).name
    training = description.get("training") or {}
    return {"provenance": made, "training": {key: training[key] for key in ("epoch", "epochs")} if training else None}


def _upload(repository: str, folder: Path, names: Sequence[str]) -> str:
    """Uploads files to a repository, which is created if it does not exist; returns its address."""
    hub, errors = import_extra("huggingface_hub", "hub"), import_extra("huggingface_hub.errors", "hub")
    message = f"Upload with resnetlab {version('resnetlab')}"
    try:
        address = hub.HfApi().create_repo(repository, exist_ok=True)
        hub.HfApi().upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(names), commit_message=message
        )
    except errors.LocalTokenNotFoundError as error:
        raise UserError(_LOGIN.format(f"uploading to {PREFIX}{repository} needs a login")) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(_LOGIN.format(f"you may not write to {PREFIX}{repository} ({status})")) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"the upload failed ({status}): {reason[:200]}. The files are in {folder}.") from error
    except Exception as error:  # of the connection, of several libraries
        raise UserError(
            f"the upload failed ({type(error).__name__}): no connection to {endpoint()}. The files are in {folder}; "
            "run the command again to upload them."
        ) from error
    return str(address)


_LOGIN = "{}. Log in with `hf auth login`, or set the variable HF_TOKEN to a token that may write."
