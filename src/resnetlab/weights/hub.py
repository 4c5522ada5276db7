"""Weights in a repository of a model hub, by the name "hub:USER/NAME"."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError
from resnetlab.core.hub import repository_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")


def hub_weights(name: str | Path) -> Path:
    """Returns the file of a repository's weights, downloaded if necessary; its config.json is in the same folder.

    Only safetensors are downloaded. What was downloaded before is used without a connection.

    Args:
        name: "hub:USER/NAME".

    Raises:
        UserError: huggingface_hub is not installed, the repository does not exist or has no safetensors, or the
            download failed.
    """
    repository = repository_of(name)
    fetch = _fetcher(repository)
    path = fetch(WEIGHTS)
    if path is None and (path := fetch(INDEX)) is not None:
        for file in _parts(path):
            fetch(file)
    if path is None:
        raise UserError(_without_safetensors(repository))
    fetch(CONFIG)
    return path


def endpoint() -> str:
    """Returns the address of the hub."""
    return import_extra("huggingface_hub.constants", "hub").ENDPOINT


def _fetcher(repository: str) -> Callable[[str], Path | None]:
    """Returns what downloads a file of a repository; it returns None if the repository does not have the file."""
    hub, errors = import_extra("huggingface_hub", "hub"), import_extra("huggingface_hub.errors", "hub")
    address = f"{endpoint()}/{repository}"

    def fetch(file: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except errors.LocalEntryNotFoundError as error:  # before its base class: it says that nothing could be asked
            if file == CONFIG:  # not every repository has one, and offline nobody knows
                return None
            raise UserError(
                f"hub:{repository} could not be downloaded, and it is not in the cache: no connection to "
                f"{endpoint()}. Try again with a connection; or download {address}/resolve/main/{WEIGHTS} "
                f"and its {CONFIG} on another machine into one folder, and give the path of the file."
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"hub:{repository} does not exist, or you may not read it. Check the name at {address}; for a "
                "private repository, log in with `hf auth login` or set the variable HF_TOKEN."
            ) from error
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"hub:{repository} could not be downloaded: {reason[:200]}. Try again later.") from error

    return fetch


def _parts(index: Path) -> list[str]:
    """Returns the files that an index lists; reading refuses a name that is not of a safetensors file."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(name for name in names if isinstance(name, str) and name.endswith(".safetensors") and "/" not in name)


def _without_safetensors(repository: str) -> str:
    hub = import_extra("huggingface_hub", "hub")
    try:
        files = list(hub.HfApi().list_repo_files(repository))
    except Exception:  # the message is about something else
        files = []
    if pickles := [file for file in files if file.endswith(_PICKLES)]:
        return (
            f"hub:{repository} has no {WEIGHTS}, only pickled weights ({pickles[0][:80]}). Pickled files are not "
            "downloaded, because they can contain code. Ask the authors for safetensors; or download the file yourself "
            "and give its path, and ResNetLab reads only its tensors."
        )
    return f"hub:{repository} has no {WEIGHTS}. Give a repository that has one, or the path of a file of weights."
