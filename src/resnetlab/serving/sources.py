"""What is served: an exported file, or a run or a packaged network, which is exported if its file is missing or old."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from resnetlab.core.errors import UserError
from resnetlab.core.files import cache_folder
from resnetlab.core.packaged import is_packaged, packaged_weights
from resnetlab.exporting.session import MODEL, SELFTEST, exported_file, is_exported, open_exported
from resnetlab.serving.models import Opened
from resnetlab.serving.similar import Similar
from resnetlab.serving.threshold import UNSURE_BELOW, threshold_of

_CHECKPOINTS = "checkpoints/**/*.safetensors"


class Source:
    """A network to serve; a call opens its file and compares the answers with those where it was exported.

    Args:
        path: a run folder, an .onnx file, a folder with model.onnx, or the name of a packaged network.
        model: for a run of the user's own network, what builds it.
        threads: threads of the session.
        similar: whether the page shows similar training images of a run.
        say: called with the sentence that a run is being exported, and others.

    Raises:
        UserError: it is none of these.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        threads: int | None = None,
        similar: bool = True,
        say: Callable[[str], None],
    ) -> None:
        self.path, self._model, self._threads, self._say = Path(path), model, threads, say
        self.is_run = (self.path / "run.toml").is_file()
        self._export: subprocess.Popen[str] | None = None
        self._shows_similar, self._similar = similar, None
        self._packaged = packaged_weights(path) if is_packaged(path) else None
        is_file = not self.is_run and self._packaged is None
        if is_file and not is_exported(self.path):
            from resnetlab.core.runs import Run

            Run(self.path)  # raises the error that says what is missing
        if is_file:
            exported_file(self.path)

    @property
    def folder(self) -> Path:
        """The run, or the folder of the file; for a packaged network the working directory."""
        return self.path if self.path.is_dir() else self.path.parent

    def __call__(self) -> Opened:
        """Returns the opened network; exports a run first if its export is missing or older than its weights.

        Raises:
            UserError: the run cannot be exported, or this machine computes other answers.
        """
        exported = open_exported(self._file(), threads=self._threads)
        exported.selftest()
        run = self.path if self.is_run else exported.path.resolve().parent.parent
        if self._packaged is not None or not (run / "run.toml").is_file():
            return Opened(exported)
        if self._shows_similar and "embedding" in exported.outputs:
            self.stop()  # of the network before
            self._similar = Similar(run, exported, self._say)
            self._similar.start()
        # Reading the table takes a second, in which an exported file can be ready already.
        return Opened(exported, threshold_of(run) if self.is_run else UNSURE_BELOW, self._similar)

    def stop(self) -> None:
        """Stops the processes that run."""
        if self._similar is not None:
            self._similar.stop()
        if self._export is not None and self._export.poll() is None:
            self._export.terminate()

    def _file(self) -> Path:
        if self._packaged is not None:
            return self._packaged_file(self._packaged)
        if not self.is_run:
            return exported_file(self.path)
        file = self.path / "export" / MODEL
        weights = [self.path / "model.safetensors", *self.path.glob(_CHECKPOINTS)]
        newest = max((path.stat().st_mtime for path in weights if path.is_file()), default=0.0)
        if file.is_file() and file.with_name(SELFTEST).is_file() and file.stat().st_mtime >= newest:
            return file
        self._write(*(["--model", self._model] if self._model else []))
        return file

    def _packaged_file(self, weights: Path) -> Path:
        """Returns the exported file of a packaged network, from the user's cache folder."""
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        file = cache_folder("exports") / f"{self.path}-{digest}" / MODEL
        if not (file.is_file() and file.with_name(SELFTEST).is_file()):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write("--out", str(file.parent))
        return file

    def _write(self, *options: str) -> None:
        """Exports the network."""
        self._say(f"exporting {self.path}, once; this takes seconds to a minute")
        command = [sys.executable, "-m", "resnetlab", "export", str(self.path), "--to", "onnx", *options]
        # Another process, so that this one never loads torch.
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as self._export:
            _, words = self._export.communicate()
        if self._export.returncode:
            reason = words.strip().removeprefix("error:").strip() or "the export was stopped."
            raise UserError(f"{self.path} cannot be exported: {reason}")
