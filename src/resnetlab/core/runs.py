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
import functools
import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.checks import (
    LARGEST_SIZE,
    MOST_BLOCKS,
    MOST_CHANNELS,
    MOST_EPOCHS,
    MOST_THREADS,
    check_class_names,
    check_schema,
    check_shape,
)
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, brief, outside_cause, resume_command
from resnetlab.core.files import (
    MOST_BYTES,
    atomic,
    exclusive_lock,
    file_name,
    make_folder,
    printable,
    read_json,
    read_toml,
    remove_leftovers,
    write_json,
    write_toml,
)
from resnetlab.core.html import render
from resnetlab.core.pictures import NOTEBOOK_COLORS, learning_curves

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
HISTORY_COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "images_per_second", "seconds",
)  # fmt: skip
_SETTINGS = {
    "created?": str,
    "seed": range(2**63),
    "model": {
        "name": str,
        "config": {"depths?": [range(1, MOST_BLOCKS + 1)], "widths?": [range(1, MOST_CHANNELS + 1)]},
        "frozen?": [str],
        "frozen_sections?": [str],
        "lineage?": [str],
    },
    "data": {
        "source": str,
        "fingerprint": str,
        "class_names": [str],
        "counts": {str: range(2**40)},
        "image_size?": range(1, LARGEST_SIZE + 1),
    },
    "preprocessing": {"image_size?": range(1, LARGEST_SIZE + 1), "mean?": [float], "std?": [float]},
    "recipe": {
        "name": str,
        "epochs": range(1, MOST_EPOCHS + 1),
        "batch_size?": range(1, 2**40),
        "lr?": float,
        "optimizer?": str,
        "schedule?": str,
        "loss?": str,
        "rates?": {str: float},
        "framing?": dict,
        "augment?": {"steps?": [str]},
    },
    "machine": {
        "threads?": range(1, MOST_THREADS + 1),
        "device?": str,
        "precision?": str,
        "memory_format?": str,
    },
    "extensions?": [
        {
            "start": range(MOST_EPOCHS),
            "epochs": range(1, MOST_EPOCHS + 1),
            "planned?": range(1, MOST_EPOCHS + 1),
            "ended_by?": str,
        }
    ],
    "ended?": range(MOST_EPOCHS),
    "ended_by?": str,
    "automatic?": [str],
    "imports?": [{"file": str, "sha256": str}],
    "callbacks?": [str],
}
"""What run.toml must contain; see `check_shape`. What builds networks and recipes from it checks the rest."""
_SUMMARY = {
    "split": str, "n": int, "top1": float, "top5?": float, "loss": float, "top1_low?": float, "top1_high?": float,
    "temperature?": float, "ece?": float, "ece_uncalibrated?": float, "mce?": float, "epoch?": int, "epochs?": int,
    "weights?": str, "data?": str,
}  # fmt: skip
_ENVIRONMENT = {"python?": str, "platform?": str, "processor?": str, "packages?": {str: str}}
_LONGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as the format limits them."""
_LOCK = ".resnetlab.lock"
_reserved: dict[Path, os.stat_result] = {}
"""The locks that this process holds, by folder."""
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
            if (self.path / "grid.toml").is_file():
                raise UserError(
                    f"{printable(self.path)} has several runs, made with --grid or --seeds. Name one of the "
                    f"folders in it, or compare them: resnetlab compare {shlex.quote(str(self.path))}. To continue "
                    "them, repeat the command that made them."
                )
            raise UserError(
                f"{printable(self.path)} is not a run: {problem}. Give a folder that `resnetlab train` wrote"
                f"{_known_runs()}."
            )
        self.settings = _read_settings(self.path / "run.toml")

    @property
    def imports(self) -> list[str]:
        """The files of yours that were imported for the parts of the run."""
        return [printable(entry["file"]) for entry in self.settings.get("imports", [])]

    @property
    def resume_command(self) -> str:
        """The command that continues the run, ready for a shell."""
        return resume_command(self.path, self.imports)

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
        with exclusive_lock(self.path / _LOCK, _busy(self.path)), _remembered(self.path):
            remove_leftovers(self.path)
            yield

    def check_place(self) -> None:
        """Raises `UserError` if the folder that this process reserved was moved, removed or replaced since.

        Another process may use the place now, so nothing must be written there.
        """
        if not _is_in_place(self.path):
            raise UserError(
                f"{self.path} was moved, removed or replaced while it was trained. Its last checkpoint is where the "
                "folder is now: resnetlab train --resume FOLDER"
            )

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
    def starts(self) -> list[int]:
        """The number of epochs before the training, which is 0, and before each extension."""
        return [0, *(extension["start"] for extension in self._extensions)]

    @property
    def first_epoch(self) -> int:
        """The number of epochs before the last extension; 0 for a run that was not extended."""
        return self.starts[-1]

    @property
    def early_ends(self) -> list[tuple[int, int]]:
        """Where `resume(run, finish=True)` ended the training early: complete and planned epochs, in order."""
        ends = [
            (part["start"], part["planned"])
            for part in self._extensions
            if part.get("ended_by") == "finish" and "planned" in part
        ]
        if self.settings.get("ended_by") == "finish" and "ended" in self.settings:
            ends.append((self.settings["ended"], self.epochs))
        return ends

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
        self.settings = _read_settings(self.path / "run.toml")
        return self

    def extend(self, start: int, epochs: int) -> Run:
        """Records that the complete run continues from `start` complete epochs to a total of `epochs`.

        Existing evaluations are of the network before, and get its epoch. How the run had ended before its planned
        epochs moves into the record of the extension.
        """
        extension = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "start": start, "epochs": epochs}
        if "ended_by" in self.settings:
            extension |= {"planned": self.epochs, "ended_by": self.settings["ended_by"]}
        for path in self.evaluation().rglob("summary.json"):  # first: without these labels it is not extended
            write_json(path, {"epoch": start, "epochs": epochs, **read_json(path)})
        self._write({**self.settings, "extensions": [*self._extensions, extension], "ended": None, "ended_by": None})
        return self

    def record_end(self, epoch: int, ended_by: str) -> None:
        """Records after which epoch the training ended, unless that follows from the recipe.

        Args:
            epoch: complete epochs.
            ended_by: "patience" or "finish", what ended the training if the planned epochs are not complete.
        """
        if epoch < self.epochs or self._extensions:
            self._write({**self.settings, "ended": epoch, "ended_by": ended_by if epoch < self.epochs else None})

    def remove_checkpoints(self) -> None:
        """Removes all checkpoints."""
        folder = self.path / "checkpoints"
        found = (path for path in folder.rglob("*step-*") if path.name.startswith(("step-", ".step-")))
        files = [path for path in found if path.is_file() and path.suffix in (".safetensors", ".part")]
        for path in files:
            with suppress(PermissionError):  # on Windows, of a file that another process reads
                path.unlink(missing_ok=True)
        for emptied in (*folder.glob("extension-*"), folder):
            if emptied.is_dir() and not any(emptied.iterdir()):
                with suppress(PermissionError):
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
        if not path.is_file():
            return {}
        values = read_json(path)
        check_shape(printable(path), {name: value for name, value in values.items() if value is not None}, _ENVIRONMENT)
        return values

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: losses, accuracies (0 to 1), learning rate, speed."""
        import pandas as pd  # slow to import, and not needed to load a network

        rows = self.history_rows()
        return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))

    def history_rows(self) -> list[dict[str, Any]]:
        """The history, with exact floats: that of the newest weights or checkpoint, otherwise that of history.csv.

        A message says if history.csv differs.

        Raises:
            UserError: there are no weights yet, and a value in history.csv is not a number.
        """
        path = self.path / "history.csv"
        if (recorded := self._recorded_history()) is None:
            return _read_history(path) if path.is_file() else []
        if not self._has_written(recorded):
            _notice_once(
                f"{printable(path)} differs from the history in the weights of the run, which is used. To restore the "
                f"file: {self.resume_command}"
            )
        return recorded

    def restore_history(self) -> None:
        """Writes history.csv again if it differs from the history in the newest weights or checkpoint."""
        if not self.has_history:
            self.write_history(self._recorded_history() or [])

    @property
    def has_history(self) -> bool:
        """Whether history.csv is what the newest weights or checkpoint say."""
        recorded = self._recorded_history()
        return recorded is None or self._has_written(recorded)

    def _has_written(self, recorded: Sequence[Mapping[str, Any]]) -> bool:
        try:
            rows = _read_history(self.path / "history.csv")
        except (UserError, FileNotFoundError):
            rows = []
        if not self.is_complete and len(rows) + 1 == len(recorded):  # a process that trains is about to write it
            return _is_equal(rows, recorded[:-1])
        return _is_equal(rows, recorded)

    def _recorded_history(self) -> list[dict[str, Any]] | None:
        """Returns the history in the newest file of weights that has one."""
        steps = [] if self.is_complete else sorted(self.checkpoints.glob("step-*.safetensors"), reverse=True)
        for path in [*steps, self.weights]:
            try:
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(length)) if length < _LONGEST_HEADER else {}
                recorded = json.loads(header["__metadata__"]["resnetlab"])["training"]["history"]
                return history_from_columns(recorded)
            except (OSError, KeyError, TypeError, ValueError, RecursionError):  # reading the weights says what is wrong
                continue
        return None

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replaces history.csv."""
        self.check_place()
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
        return read_summary(path) if path.is_file() else None

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


def read_summary(path: Path) -> dict[str, Any]:
    """Returns the overall figures of an evaluation from its summary.json, or raises `UserError`."""
    summary = read_json(path)
    check_shape(printable(path), summary, _SUMMARY)
    return summary


def stopped_at(figures: Mapping[str, Any]) -> str:
    """Returns "epoch 7 of 20" for figures of a network whose training was stopped there, and otherwise ""."""
    return f"epoch {figures['epoch']} of {figures['epochs']}" if "epoch" in figures else ""


def history_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the history by column, ready for JSON: NaN becomes None."""
    return {name: [None if math.isnan(row[name]) else row[name] for row in rows] for name in HISTORY_COLUMNS}


def history_from_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the rows of what `history_columns` returned.

    Raises:
        ValueError: a column is missing, of another length or not of numbers; also `KeyError` and `TypeError`.
    """
    rows = zip(*(columns[name] for name in HISTORY_COLUMNS), strict=True)
    return [{name: _number(name, value) for name, value in zip(HISTORY_COLUMNS, row, strict=True)} for row in rows]


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
    created = make_folder(path)
    with exclusive_lock(path / _LOCK, _busy(path)), _remembered(path):
        check_folder(path)  # another process may have used it until now
        remove_leftovers(path)
        _clear(path)
        try:
            yield path
        except BaseException:
            if not (path / "run.toml").exists() and _is_in_place(path):
                _clear(path)
                with suppress(OSError):  # Windows keeps a locked file; it does no harm
                    (path / _LOCK).unlink()
                    for folder in created:
                        folder.rmdir()
            raise


@contextmanager
def _remembered(path: Path) -> Iterator[None]:
    """Remembers within the block which file is the lock of a folder; see `Run.check_place`."""
    place = path.absolute()
    _reserved[place] = (path / _LOCK).stat()
    try:
        yield
    finally:
        del _reserved[place]


def _is_in_place(path: Path) -> bool:
    """Whether the folder that this process reserved, if it did, is still at its path."""
    reserved, lock = _reserved.get(path.absolute()), path / _LOCK
    return reserved is None or (lock.exists() and os.path.samestat(lock.stat(), reserved))


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
                f"{path} is not empty, and runs never overwrite anything. Choose another folder with --out (in Python "
                f"out=){remedy}"
            )
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder. Choose another folder with --out (in Python out=).")
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            return path
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write to {path}: {reason}. Choose a folder in which you may write with --out (in Python out=)."
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
    return (
        f"{path} is being trained by another process. Wait for it, stop it, or choose another folder with --out (in "
        "Python out=)."
    )


def _known_runs() -> str:
    found = sorted(path.parent.as_posix() for path in Path("runs").glob("*/run.toml"))
    return f"; there are {', '.join(found[-5:])}" if found else ""


def _read_settings(path: Path) -> dict[str, Any]:
    """Returns the content of run.toml, or raises `UserError` that names the entry that is wrong."""
    settings = read_toml(path)
    check_schema(printable(path), settings.get("schema"), SCHEMA_VERSION)
    check_shape(printable(path), settings, _SETTINGS)
    check_class_names(settings["data"]["class_names"] or ["-"], f"{printable(path)}: data.class_names")
    return settings


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of history.csv, or raises `UserError` that names the line and the column."""
    name = printable(path)
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        raise outside_cause(error, name) or error from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text. Restore the file.") from error
    rows = []
    lines = text.splitlines()
    if not lines or lines[0].split(",") != list(HISTORY_COLUMNS):
        raise UserError(f"{name} must start with the columns {', '.join(HISTORY_COLUMNS)}. Restore the file.")
    for number, line in enumerate(lines[1:], 2):
        cells = line.split(",")
        if len(cells) != len(HISTORY_COLUMNS):
            raise UserError(
                f"{name}, line {number}: expected {len(HISTORY_COLUMNS)} values, got {len(cells)}. Restore the file."
            )
        row: dict[str, Any] = {}
        for column, cell in zip(HISTORY_COLUMNS, cells, strict=True):
            try:
                row[column] = _number(column, cell)
            except ValueError as error:
                got = printable(brief(cell))
                raise UserError(f"{name}, line {number}: {column} must be a number, got {got}. Restore it.") from error
        rows.append(row)
    return rows


def _is_equal(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two histories are equal; NaN equals NaN."""
    return repr([dict(row) for row in rows]) == repr([dict(row) for row in others])


@functools.cache  # a verb reads the history several times
def _notice_once(message: str) -> None:
    notice(message)


def _number(column: str, value: str | float | None) -> int | float:
    """Returns a value of the history from a file; raises `ValueError` or `TypeError` if it is not a number."""
    if value is None:
        return math.nan
    try:
        return int(value) if column in ("epoch", "step") else float(value)
    except OverflowError as error:
        raise ValueError(f"{column} is too large") from error
