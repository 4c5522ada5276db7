"""The training images most similar to a photo, by the network's embeddings, for the page.

Another process embeds a run's training images, `python -m resnetlab.serving.similar RUN FILE`, so that the service
needs neither torch nor the images. It runs with low priority while the service answers already, and writes one file
next to the exported network: embeddings, labels and thumbnails.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnetlab.exporting.session import Exported, open_exported

COUNT = 3
"""Images that an answer has."""
MOST = 10_000
"""Training images that are compared; of more, a sample that keeps the proportions of the classes."""
READY, PREPARING, UNAVAILABLE = "ready", "preparing", "unavailable"
"""Whether the training images are known."""
_FILE = "similar.npz"
_THUMBNAIL = 96  # pixels
_SMALL = 64  # a JPEG of fewer pixels is hard to recognize
_BATCH = 16
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Training images: embeddings (N, D) of length 1, labels (N,), and thumbnails, one after the other."""

    embeddings: np.ndarray
    labels: np.ndarray
    thumbnails: bytes
    ends: np.ndarray


class Similar:
    """The training images of a run; they are known some time after `start`.

    Args:
        run: the run folder.
        exported: its network.
        say: called with the reason if they cannot be shown.
    """

    def __init__(self, run: Path, exported: Exported, say: Callable[[str], None]) -> None:
        self._run, self._exported, self._say = run, exported, say
        self._file = exported.path.with_name(_FILE)
        self._known: _Known | None = None
        self._process: subprocess.Popen[str] | None = None
        self._stopped = self._failed = False

    def start(self) -> None:
        """Reads the file, or writes it first, in a process of its own."""
        self._known = _read(self._file, self._exported)
        if self._known is None:
            threading.Thread(target=self._write, name="similar", daemon=True).start()

    def stop(self) -> None:
        """Ends the process, if it runs."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    @property
    def state(self) -> str:
        """Whether the images are known: `READY`, `PREPARING` or `UNAVAILABLE`."""
        if self._known is not None:
            return READY
        return UNAVAILABLE if self._failed else PREPARING

    def nearest(self, embedding: np.ndarray) -> list[dict[str, Any]]:
        """Returns class, cosine similarity and thumbnail (a data URI) of the nearest images; empty until known."""
        known, length = self._known, float(np.linalg.norm(embedding))
        if known is None or not length > 0:
            return []
        similarity = known.embeddings @ (embedding / length)
        found = []
        for place in np.argsort(-similarity, kind="stable")[:COUNT].tolist():
            content = known.thumbnails[known.ends[place - 1] if place else 0 : known.ends[place]]
            kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
            found.append(
                {
                    "class": self._exported.class_names[known.labels[place]],
                    "similarity": round(float(similarity[place]), _DIGITS),
                    "image": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
                }
            )
        return found

    def _write(self) -> None:
        command = [sys.executable, "-m", __name__, str(self._run), str(self._exported.path)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as self._process:
            if self._stopped:
                self._process.terminate()
            _, words = self._process.communicate()
        self._known = _read(self._file, self._exported)
        self._failed = self._known is None
        if self._failed and not self._stopped:
            reason = (words.strip().splitlines() or ["its process ended."])[-1]
            self._say(f"similar training images are not shown: {reason}")


def write_similar(run: Path, file: Path) -> None:
    """Writes the embeddings and thumbnails of a run's training images next to an exported file.

    Raises:
        UserError: the images are not available, or the network has no embedding.
    """
    from resnetlab.core.files import atomic
    from resnetlab.core.runs import Run

    settings = Run(run).settings["data"]  # before what is slow to import, because it can fail
    import torch

    from resnetlab.data.load import reload_data
    from resnetlab.data.splits import limited
    from resnetlab.evaluation.forward import places_among

    exported = open_exported(file)
    data = reload_data(settings)
    labels = data.split("train").labels.numpy()
    chosen = np.arange(len(labels))
    if len(labels) > MOST:
        chosen = limited(labels, data.num_classes, MOST, seed=0, option=None)
    order = np.array(places_among(data.class_names, exported.class_names))
    embeddings, thumbnails = [], []
    for places in np.array_split(chosen, -(-len(chosen) // _BATCH)):
        squares = data.squares("train", torch.from_numpy(places)).permute(0, 2, 3, 1).contiguous().numpy()
        values = exported.run(squares, ["embedding"])["embedding"]
        embeddings.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
        thumbnails += map(_thumbnail, squares)
    with atomic(file.with_name(_FILE)) as temporary, temporary.open("wb") as target:
        np.savez(
            target,
            weights=_weights(exported),
            embeddings=np.concatenate(embeddings).astype(np.float16),
            labels=order[labels[chosen]],
            thumbnails=np.frombuffer(b"".join(thumbnails), dtype=np.uint8),
            ends=np.cumsum([len(content) for content in thumbnails]),
        )


def _read(file: Path, exported: Exported) -> _Known | None:
    """Returns the content of the file; None if it is missing, damaged, or of other weights."""
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(file) as found:
        if str(found["weights"]) == _weights(exported):
            return _Known(
                embeddings=found["embeddings"].astype(np.float32),
                labels=found["labels"],
                thumbnails=found["thumbnails"].tobytes(),
                ends=found["ends"],
            )
    return None


def _weights(exported: Exported) -> str:
    return str(exported.metadata.get("provenance", {}).get("weights_sha256", ""))


def _thumbnail(square: np.ndarray) -> bytes:
    """Returns the file of a small image, of pixels (H, W, C)."""
    image, file = Image.fromarray(square.squeeze(2) if square.shape[2] == 1 else square), io.BytesIO()
    if max(image.size) < _SMALL:
        image.save(file, "PNG")
    else:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(file, "JPEG", quality=85)
    return file.getvalue()


def main() -> None:
    """Writes the file for the run and the exported network that the command line names."""
    from resnetlab.core.environment import end_with_parent
    from resnetlab.core.errors import UserError

    end_with_parent()
    if sys.platform != "win32":
        with suppress(OSError):
            os.nice(10)
    try:
        write_similar(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(str(error))
    except ImportError as error:  # a deployment without torch
        sys.exit(f"this needs the package {error.name}, which is not installed.")


if __name__ == "__main__":
    main()
