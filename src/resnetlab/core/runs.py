"""The run folder, which every later verb takes.

run.toml             the resolved configuration: enough to run it again
environment.json     versions and machine
history.csv          one row per epoch
checkpoints/         what resuming needs, until the training is complete
model.safetensors    the trained network, with its description
evaluation/          figures and tables of the test split, or else of the validation split
figures/*.png        the report's pictures
report.html          one page, opens anywhere
tensorboard/         the history as event files, with --tensorboard
bad_steps.csv        steps that were not finite, if any
.resnetlab.lock      locked by the process that trains the run; marks the folder as a run's from the first moment
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.checks import check_schema
from resnetlab.core.errors import UserError, resume_command
from resnetlab.core.files import atomic, exclusive_lock, file_name, read_toml, write_json, write_toml
from resnetlab.core.html import render
from resnetlab.core.pictures import NOTEBOOK_COLORS, learning_curves

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
HISTORY_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "images_per_second", "seconds",
)  # fmt: skip
_SETTINGS = ("seed", "model", "data", "preprocessing", "recipe", "machine")
_LOCK = ".resnetlab.lock"
_BEFORE_CHECKPOINT = (_LOCK, "environment.json", "run.toml")
"""The files that a run has before its first checkpoint."""
TIMING_COLUMNS = ("images_per_second", "seconds")
"""The columns of the history that depend on the machine: two equal runs differ in them."""


class Run:
    """One run folder, opened for reading.

    Args:
        path: the folder, as `fit` returned it or `--out` named it.

    Raises:
        UserError: the folder does not exist, is not a run, or was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.toml").is_file():
            problem = "the folder does not exist" if not self.path.exists() else "no run.toml found"
            if (self.path / _LOCK).is_file():
                raise UserError(
                    f"{self.path} is not a run yet: its training was stopped before its settings were written. "
                    "Repeat the command that started the training."
                )
            raise UserError(
                f"{self.path} is not a run: {problem}. Give a folder that `resnetlab train` wrote{_known_runs()}."
            )
        self.settings: dict[str, Any] = read_toml(self.path / "run.toml")
        check_schema(self.path / "run.toml", self.settings.get("schema"), SCHEMA_VERSION)
        missing = [name for name in _SETTINGS if name not in self.settings]
        if missing:
            raise UserError(f"{self.path}/run.toml is incomplete: {', '.join(missing)} missing. Restore the file.")

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> Run:
        """Writes a new run folder's first files and opens it."""
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_json(path / "environment.json", environment)
        write_toml(path / "run.toml", {"schema": SCHEMA_VERSION, **settings})
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Reserves the run for this process, so that no second process trains it at the same time.

        Raises:
            UserError: another process trains it.
        """
        with exclusive_lock(self.path / _LOCK, _busy(self.path)):
            yield

    @property
    def weights(self) -> Path:
        """The trained network's file, written when the training is complete."""
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; every extension has its own."""
        folder, extensions = self.path / "checkpoints", self._extensions
        return folder / f"extension-{len(extensions)}" if extensions else folder

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.path / "report.html"

    @property
    def epochs(self) -> int:
        """The planned number of epochs, those of the last extension included."""
        return self._extensions[-1]["epochs"] if self._extensions else self.settings["recipe"]["epochs"]

    @property
    def first_epoch(self) -> int:
        """The number of epochs before the last extension; 0 for a run that was not extended."""
        return self._extensions[-1]["start"] if self._extensions else 0

    @property
    def is_complete(self) -> bool:
        """Whether the training ended: after its last step, or where `resume(run, finish=True)` ended it."""
        # During an extension, model.safetensors is the network before it.
        return self.weights.is_file() and ("ended" in self.settings or not self._extensions)

    @property
    def is_untrained(self) -> bool:
        """Whether the training was stopped before its first checkpoint."""
        has_checkpoint = any(self.checkpoints.glob("step-*.safetensors"))
        return not (has_checkpoint or self.weights.is_file() or (self.path / "history.csv").is_file())

    @property
    def is_evaluated(self) -> bool:
        """Whether the run's own evaluation is written, or the run has no images for one."""
        return self.summary is not None or set(self.settings["data"]["counts"]) == {"train"}

    def reload(self) -> Run:
        """Reads run.toml again, because another process may have changed it, and returns this run."""
        self.settings = read_toml(self.path / "run.toml")
        return self

    def extend(self, start: int, epochs: int) -> Run:
        """Records that the complete run continues from `start` complete epochs to a total of `epochs`.

        Existing evaluations are of the network before, and get its epoch.
        """
        extension = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "start": start, "epochs": epochs}
        for path in self.evaluation().rglob("summary.json"):  # first: without these labels it is not extended
            write_json(path, {"epoch": start, "epochs": epochs, **json.loads(path.read_text(encoding="utf-8"))})
        self._write({**self.settings, "extensions": [*self._extensions, extension], "ended": None})
        return self

    def record_end(self, epoch: int) -> None:
        """Records after which epoch the training ended, unless that follows from the recipe."""
        if epoch < self.epochs or self._extensions:
            self._write({**self.settings, "ended": epoch})

    def remove_checkpoints(self) -> None:
        """Removes all checkpoints."""
        folder = self.path / "checkpoints"
        files = [path for path in folder.rglob("*step-*") if path.name.startswith(("step-", ".step-"))]
        for path in files:
            with suppress(PermissionError):  # on Windows, of a file that another process reads
                path.unlink(missing_ok=True)
        for emptied in (*folder.glob("extension-*"), folder):
            with suppress(OSError):  # something else is in it, or it does not exist
                emptied.rmdir()

    @property
    def _extensions(self) -> list[dict[str, Any]]:
        return self.settings.get("extensions", [])

    def _write(self, settings: Mapping[str, Any]) -> None:
        write_toml(self.path / "run.toml", dict(settings))
        self.reload()

    @property
    def environment(self) -> dict[str, Any]:
        """The versions and the machine of the run; empty if unknown."""
        path = self.path / "environment.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: losses, accuracies (0 to 1), learning rate, speed."""
        import pandas as pd  # slow to import, and not needed to load a network

        rows = self.history_rows()
        return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))

    def history_rows(self) -> list[dict[str, Any]]:
        """The rows of history.csv, with exact floats."""
        path = self.path / "history.csv"
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {key: int(value) if key in ("epoch", "step") else float(value) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces history.csv."""
        with (
            atomic(self.path / "history.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer: csv.DictWriter[str] = csv.DictWriter(file, HISTORY_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def evaluation(self, name: str | None = None) -> Path:
        """The folder of the run's own evaluation, or of the one on another data set."""
        folder = self.path / "evaluation"
        return folder / name if name else folder

    @property
    def summary(self) -> dict[str, Any] | None:
        """The evaluation's overall figures (top1, top5, loss, n, split), once evaluated."""
        path = self.evaluation() / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def __repr__(self) -> str:
        model, data = self.settings["model"]["name"], self.settings["data"]["source"]
        lines = [f"Run {self.path}: {model} on {data}, recipe {self.settings['recipe']['name']}"]
        if rows := self.history_rows():
            last = rows[-1]
            done = f"{len(rows)} epochs" if len(rows) == self.epochs else f"epoch {len(rows)} of {self.epochs}"
            line = f"  {done}, {last['seconds']:.0f} s, training top-1 {last['train_top1']:.2%}"
            if not math.isnan(last["val_top1"]):
                line += f", validation top-1 {last['val_top1']:.2%}"
            lines.append(line)
        if (summary := self.summary) is not None:
            at = f" at {stopped}" if (stopped := stopped_at(summary)) else ""
            lines.append(f"  {summary['split']} top-1 {summary['top1']:.2%} of {summary['n']} images{at}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Returns the notebook view."""
        rows = self.history_rows()
        curves = learning_curves(rows)[:2] if rows else ()
        files = {
            "report": self.report,
            "evaluation": self.evaluation() / "summary.json",
            "history": self.path / "history.csv",
        }
        return render(
            "core/templates/run.html",
            run=self,
            rows=rows,
            stopped=stopped_at(self.summary or {}),
            curves=[curve.svg(f"{self.path}-{curve.title}", NOTEBOOK_COLORS) for curve in curves],
            files={name: path for name, path in files.items() if path.is_file()},
        )


def stopped_at(figures: Mapping[str, Any]) -> str:
    """Returns "epoch 7 of 20" for figures of a network whose training was stopped there, and otherwise ""."""
    return f"epoch {figures['epoch']} of {figures['epochs']}" if "epoch" in figures else ""


def history_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the history by column, ready for JSON: NaN becomes None."""
    return {name: [None if math.isnan(row[name]) else row[name] for row in rows] for name in HISTORY_COLUMNS}


def history_from_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the rows of what `history_columns` returned."""
    rows = zip(*(columns[name] for name in HISTORY_COLUMNS), strict=True)
    return [
        {name: math.nan if value is None else value for name, value in zip(HISTORY_COLUMNS, row, strict=True)}
        for row in rows
    ]


def default_folder(data_name: str, model_name: str) -> Path:
    """Returns a path that does not exist: `runs/<data>-<model>-<date and time>`."""
    stem = f"{data_name}-{file_name(model_name)}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


@contextmanager
def claimed(path: str | Path) -> Iterator[Path]:
    """Creates the folder of a new run and locks it, so that no second process trains into it within the block.

    If a run in the folder was stopped before its first checkpoint, its files are removed and the folder is used again.
    If the block fails before run.toml is written, everything that was created is removed.

    Raises:
        UserError: another process has the folder, it is not empty, or it cannot be made.
    """
    path = Path(path)
    try:
        check_folder(path)
    except UserError:
        with suppress(OSError):
            if (path / _LOCK).is_file():
                with exclusive_lock(path / _LOCK, _busy(path)):
                    pass  # if another process trains in it, that error explains more
        raise
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(path / _LOCK, _busy(path)):
        check_folder(path)  # another process may have used it until now
        _clear(path)
        try:
            yield path
        except BaseException:
            if not (path / "run.toml").exists():
                _clear(path)
                with suppress(OSError):  # Windows keeps a locked file; it does no harm
                    (path / _LOCK).unlink()
                    for folder in created:
                        folder.rmdir()
            raise


def check_folder(path: str | Path) -> Path:
    """Returns the path of a new run's folder, or raises `UserError` if it is not empty or cannot be made.

    A folder in which a run was stopped before its first checkpoint counts as empty. Nothing is created.
    """
    path = Path(path)
    try:
        if path.is_dir() and any(path.iterdir()) and not _is_before_checkpoint(path):
            is_unfinished = (path / "run.toml").exists() and not (path / "model.safetensors").exists()
            remedy = f", or continue the interrupted run in it with: {resume_command(path)}" if is_unfinished else "."
            raise UserError(
                f"{path} is not empty, and runs never overwrite anything. Choose another folder with --out{remedy}"
            )
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder. Choose another folder with --out.")
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            return path
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to {path}: {reason}. Use --out to choose a folder in which you may write."
        ) from error


def _is_before_checkpoint(path: Path) -> bool:
    """Whether a folder has the lock of a run, and nothing but what a run writes before its first checkpoint."""
    if not (path / _LOCK).is_file():
        return False
    return all(
        all(_is_temporary(file) for file in entry.iterdir())
        if entry.name == "checkpoints" and entry.is_dir()
        else entry.name in _BEFORE_CHECKPOINT or _is_temporary(entry)
        for entry in path.iterdir()
    )


def _is_temporary(path: Path) -> bool:
    """Whether `atomic` was stopped while it wrote this file."""
    return path.name.startswith((".environment.json.", ".run.toml.", ".step-")) and path.suffix == ".part"


def _clear(path: Path) -> None:
    """Removes what a run wrote before its first checkpoint, except its lock; run.toml last."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "run.toml"):
        if entry.name == "checkpoints":
            shutil.rmtree(entry)
        elif entry.name != _LOCK and (entry.name in _BEFORE_CHECKPOINT or _is_temporary(entry)):
            entry.unlink()


def _busy(path: Path) -> str:
    return f"{path} is being trained by another process. Wait for it, stop it, or choose another folder with --out."


def _known_runs() -> str:
    found = sorted(path.parent.as_posix() for path in Path("runs").glob("*/run.toml"))
    return f"; there are {', '.join(found[-5:])}" if found else ""
