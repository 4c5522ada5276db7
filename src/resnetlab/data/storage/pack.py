"""A pack: decoded images in files, of which a training reads what it needs, built once by several processes.

    pack.json            its contents; written last, so that it marks a complete pack
    images.parquet       one row per image
    shards/train-00000.bin ...   pixels, uint8 (H, W, C) one image after another

While it is being built, it contains a file called "unfinished" with a sentence of ResNetLab's, and each finished shard
has a .json file. A build that was stopped at any moment continues with the shards that are complete and whose files are
unchanged. Only regular files with the names of shards are ever deleted, and only in a folder with that sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from resnetlab.core.checks import check_class_names, check_schema, check_shape
from resnetlab.core.console import console, is_live, notice
from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import (
    atomic,
    exclusive_lock,
    make_folder,
    printable,
    read_json,
    remove_leftovers,
    sync,
    write_json,
    write_text,
)
from resnetlab.core.tables import read_table
from resnetlab.core.waiting import NOTICE_SECONDS, WAIT_VARIABLE, wait_seconds
from resnetlab.data.sources.folders import FileSource, ListedFile
from resnetlab.data.storage.decoding import ShardFacts, StoredFormat
from resnetlab.data.storage.images import Pixels, Ragged, ReadFiles, join_shards
from resnetlab.data.storage.reader import describe_failures

SCHEMA_VERSION = 1
FILES_IN_A_SHARD = 256
_LOCK = ".lock"
_MARKER = "unfinished"
_MARKER_TEXT = "ResNetLab is building a pack in this folder. It is finished by the command that started it.\n"
_PROGRESS = json.dumps({"progress": True}) + "\n"
_MOST_SHARDS = 400  # each is an open file
_CHUNK = 2**24
_FACTS = {
    "name": str, "class_names": [str], "format": {"channels": int}, "failures": [str], "table": str,
    "arguments": {"validation_fraction": float, "test_fraction": float},
    "shards": {str: {"bytes": int, "crc32": int, "histogram": [[int]]}},
}  # fmt: skip
"""What pack.json contains; see `check_shape`."""
_COLUMNS = {
    **dict.fromkeys(("split", "shard", "digest", "path"), "text"),
    **dict.fromkeys(("label", "index", "offset", "height", "width"), "number"),
}
_SHARD = re.compile(r"(train|validation|test)-\d+")
_SHARD_FILE = re.compile(r"(?P<shard>(train|validation|test)-\d{5,})\.(bin|json)(?P<part>\.\d+\.part)?")


def is_complete(folder: Path) -> bool:
    """Whether a folder contains a complete pack."""
    return (folder / "pack.json").is_file()


def is_pack(folder: Path) -> bool:
    """Whether a folder contains a complete pack.

    Raises:
        UserError: it contains an unfinished one.
    """
    if not is_complete(folder) and _is_unfinished(folder):
        raise UserError(
            f"{printable(folder)} is an unfinished pack. Finish it with the command that started it: "
            f"resnetlab pack DATA --out {printable(folder)}"
        )
    return is_complete(folder)


@contextmanager
def pack_lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Makes a folder for a pack, or takes an unfinished one, and locks it for this process.

    Yields:
        a function that removes what was made here, if nothing is packed yet.

    Raises:
        UserError: the folder contains something else, cannot be written, or is locked by another process.
    """
    try:
        made: list[Path] = []
        if not _is_unfinished(folder):
            is_free = not folder.exists() or all(map(_is_part_of_marker, folder.iterdir()))
            if not (is_free or _is_unfinished(folder)):  # another process may have begun in between
                raise UserError(f"{folder} is not empty and contains no unfinished pack. Choose another folder.")
            made = make_folder(folder)
            write_text(folder / _MARKER, _MARKER_TEXT)
        (folder / "shards").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the pack's folder {folder}: {error.strerror}. Choose another folder.") from error
    with _locked(folder):
        remove_leftovers(folder)

        def discard() -> None:
            with suppress(OSError):  # it contains shards
                (folder / "shards").rmdir()
                (folder / _MARKER).unlink()
                (folder / _LOCK).unlink()
                for each in made:
                    each.rmdir()

        yield discard
        if is_complete(folder):
            _tidy(folder)
    if is_complete(folder):
        (folder / _LOCK).unlink(missing_ok=True)


def tidy_pack(folder: Path) -> None:
    """Removes what only the build of a complete pack needed, if its process was killed before it did."""
    with suppress(UserError, OSError):
        if _is_unfinished(folder):
            with _locked(folder):
                remove_leftovers(folder)
                _tidy(folder)
        if (folder / _LOCK).is_file():
            with _locked(folder):
                pass
            (folder / _LOCK).unlink()


def _locked(folder: Path) -> AbstractContextManager[None]:
    return exclusive_lock(folder / _LOCK, f"{folder} is being packed by another process. Wait for it, or stop it.")


def _tidy(folder: Path) -> None:
    """Removes what only the build of a pack needed; the marker, without which nothing is removed, is last."""
    for path, name in _shard_files(folder):
        if name["part"] or path.suffix == ".json":
            path.unlink()
    (folder / _MARKER).unlink(missing_ok=True)


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder contains a pack that was begun here and not finished; a link in it is not of a pack."""
    marker, shards, lock = folder / _MARKER, folder / "shards", folder / _LOCK
    if any(path.is_symlink() for path in (marker, shards, lock)) or (shards.exists() and not shards.is_dir()):
        return False
    return marker.is_file() and _starts(marker) == _MARKER_TEXT.encode()


def _is_part_of_marker(path: Path) -> bool:
    """Whether a file is what a process that was killed while it wrote the marker left, or is gone by now."""
    if not path.exists() and not path.is_symlink():
        return True
    is_named = path.name.startswith(f".{_MARKER}.") and path.name.endswith(".part")
    is_own = is_named and not path.is_symlink() and path.is_file()
    return is_own and _MARKER_TEXT.encode().startswith(_starts(path))


def _starts(path: Path) -> bytes:
    """Returns the content of a file, at most one byte more than the marker has; nothing if it is gone by now."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARKER_TEXT) + 1)
    except FileNotFoundError:
        return b""


def build_pack(
    folder: Path, files: Mapping[str, Sequence[ListedFile]], stored: StoredFormat, *, workers: int | None = None
) -> dict[str, ReadFiles]:
    """Decodes files into the shards of a pack, keeping finished shards, and opens them.

    The pack is complete when `finish_pack` is called.

    Args:
        folder: locked by `pack_lock`. Files in it that are not named like a shard's are kept.
        files: of every split.
        stored: the form in which images are kept.
        workers: number of decoding processes; None is one per processor.

    Raises:
        UserError: a decoding process died, or a link or a folder has the name of a shard.
    """
    tasks = _tasks(files, stored, folder / "shards")
    wanted = {Path(task["target"]).name for task in tasks}
    for path, name in _shard_files(folder):
        if name["part"] or name["shard"] not in wanted:
            path.unlink()
    missing = [task for task in tasks if _written(task, check=True) is None]
    if missing:
        _run_workers(missing, min(workers or os.cpu_count() or 1, len(missing)), folder)
    messages: list[str] = []
    result = {}
    for split in files:
        shards = [(task, _written(task) or {}) for task in tasks if task["split"] == split]
        messages += [message for _, fact in shards for message in fact["warnings"]]
        result[split] = join_shards(
            [_opener(Path(task["target"]).with_suffix(".bin"), fact) for task, fact in shards],
            [ShardFacts(**{field.name: fact[field.name] for field in fields(ShardFacts)}) for _, fact in shards],
            channels=stored.channels,
            training=split == "train",
        )
    if messages:
        warnings.warn(describe_failures(messages), stacklevel=2)
    return result


def files_digest(files: Mapping[str, Sequence[ListedFile]], stored: StoredFormat, source: FileSource) -> str:
    """Returns a digest of what a pack is made of: classes, the form, paths, sizes, times and labels of the files."""
    digest = hashlib.sha256(json.dumps([asdict(stored), source.class_names], sort_keys=True).encode())
    for split, entries in files.items():
        for entry in entries:
            place = os.path.relpath(entry.path, source.root)
            digest.update(json.dumps([split, place, entry.label, *entry.stamp]).encode())
    return digest.hexdigest()


def finish_pack(folder: Path, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Makes a pack complete: writes its table and pack.json.

    Args:
        folder: of the pack.
        table: one row per image: split, label, index and path, and what `Ragged.table` gives, where "array"
            counts the split's shards.
        facts: what else to record.
    """
    shards = {}
    facts_files = sorted(path for path, name in _shard_files(folder) if path.suffix == ".json")
    for path in facts_files:
        fact = json.loads(path.read_text(encoding="utf-8"))
        shards[path.stem] = {"bytes": fact["bytes"], "crc32": fact["crc32"], "histogram": fact["histogram"]}
    names = [_shard_name(split, number) for split, number in zip(table["split"], table["array"], strict=True)]
    table = table.drop(columns="array").assign(shard=names)
    table.attrs = {"schema": SCHEMA_VERSION}
    with atomic(folder / "images.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    digest = hashlib.sha256((folder / "images.parquet").read_bytes()).hexdigest()
    for path in facts_files:  # pack.json declares the pack complete, so everything is on the disk before
        sync(path.with_suffix(".bin"))
    sync(folder / "shards")
    write_json(folder / "pack.json", {"schema": SCHEMA_VERSION, **facts, "table": digest, "shards": shards})


def open_pack(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Ragged]]:
    """Opens a complete pack and returns its facts, its table (one row per image), and the images of each split.

    A shard's checksum is compared when its first image is read.

    Raises:
        UserError: the pack is damaged, or a newer version wrote it.
    """
    facts = read_json(folder / "pack.json")
    check_schema(folder / "pack.json", facts.get("schema"), SCHEMA_VERSION)
    check_shape(printable(folder / "pack.json"), facts, _FACTS)
    try:
        if facts["name"] != Path(facts["name"]).name or not all(map(_SHARD.fullmatch, facts["shards"])):
            raise ValueError("a file name in pack.json contains a folder")
        with (folder / "images.parquet").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["table"]:
                raise ValueError("the digest of images.parquet differs")
        table = read_table(folder / "images.parquet", _COLUMNS)
        check_class_names(facts["class_names"])
        _check_places(table, facts)
        numbers = {name: number for number, name in enumerate(facts["shards"])}
        arrays = [_opener(folder / "shards" / f"{name}.bin", fact) for name, fact in facts["shards"].items()]
        images = {}
        for split, rows in table.groupby("split", sort=False):
            shards = rows["shard"].tolist()
            counts = [np.array(facts["shards"][name]["histogram"]) for name in dict.fromkeys(shards)]
            images[str(split)] = Ragged(
                arrays,
                array=np.array([numbers[name] for name in shards], dtype=np.int64),
                offsets=rows["offset"].to_numpy(),
                shapes=rows[["height", "width"]].to_numpy(),
                channels=facts["format"]["channels"],
                digests=rows["digest"].tolist(),
                histogram=np.sum(counts, axis=0) if split == "train" else None,
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        known = outside_cause(error, printable(folder / "images.parquet"))
        raise known or UserError(f"the pack {folder} is damaged ({error}). Remove it and pack again.") from error
    return facts, table, images


def _check_places(table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless every image of a pack lies within its shard and has one of the pack's classes."""
    sizes = table["height"] * table["width"] * facts["format"]["channels"]
    ends = table["offset"] + sizes
    room = np.array([facts["shards"][name]["bytes"] for name in table["shard"]])
    is_inside = (table["offset"] >= 0) & (table["height"] > 0) & (table["width"] > 0) & (ends <= room)
    is_labeled = table["label"].between(0, len(facts["class_names"]) - 1)
    if not (is_inside & is_labeled).all() or table[["height", "width"]].to_numpy().max(initial=0) > 10**6:
        raise ValueError("images.parquet has an image outside its shard, or of an unknown class")


def _shard_files(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Returns the files of a pack's shards, and the parts of their names.

    Raises:
        UserError: something that is not a regular file has the name of one.
    """
    found = [(path, _SHARD_FILE.fullmatch(path.name)) for path in (folder / "shards").iterdir()]
    files = [(path, name) for path, name in found if name is not None]
    for path, _ in files:
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{printable(path)} is not a file of a pack. Move it, or choose another folder.")
    return files


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


def _tasks(files: Mapping[str, Sequence[ListedFile]], stored: StoredFormat, shards: Path) -> list[dict[str, Any]]:
    tasks = []
    for split, entries in files.items():
        length = max(FILES_IN_A_SHARD, -(-len(entries) // _MOST_SHARDS))
        for number, first in enumerate(range(0, len(entries), length)):
            part = entries[first : first + length]
            task = {
                "files": [(str(entry.path), *entry.stamp) for entry in part],
                "first": first,
                "format": asdict(stored),
                "split": split,
            }
            key = hashlib.sha256(json.dumps(task).encode()).hexdigest()
            tasks.append({**task, "key": key, "target": str(shards / _shard_name(split, number))})
    return tasks


def _written(task: Mapping[str, Any], *, check: bool = False) -> dict[str, Any] | None:
    """Returns the facts of a shard; None where it was not written, or of other files.

    If asked to look, None also where it is torn, and where files could not be read, which may be possible now.
    """
    target = Path(task["target"])
    try:
        facts = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["key"] != task["key"]:
            return None
        if check and facts["failures"]:
            return None
        if check:
            _opener(target.with_suffix(".bin"), facts)()
    except (OSError, ValueError, KeyError):  # a `UserError` is a `ValueError`
        return None
    return facts


def _opener(path: Path, facts: Mapping[str, Any]) -> Callable[[], Pixels]:
    """Returns a function that opens a shard and compares its checksum."""

    def open_shard() -> Pixels:
        if not facts["bytes"]:
            return np.zeros(0, dtype=np.uint8)
        shard = _Shard(path)
        checksum = 0
        for start in range(0, facts["bytes"], _CHUNK):
            checksum = zlib.crc32(shard[start : min(start + _CHUNK, facts["bytes"])].data, checksum)
        if checksum != facts["crc32"] or shard.size != facts["bytes"]:
            raise _damaged_shard(path, "its checksum differs")
        return shard

    return open_shard


class _Shard:
    """The pixels of a shard, read from its file as needed.

    The file is not mapped into memory, because the system ends a process that reads a mapped file which was truncated.

    Raises:
        UserError: the file cannot be read or is too short.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise outside_cause(error, printable(path)) or _damaged_shard(path, error.strerror or str(error)) from error

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file).st_size

    def __getitem__(self, place: slice) -> np.ndarray:
        pixels = np.empty(place.stop - place.start, dtype=np.uint8)
        done = 0
        while done < len(pixels):
            try:
                count = self._read(pixels[done:], place.start + done)
            except OSError as error:
                raise outside_cause(error, printable(self._path)) or error from error
            if not count:
                raise _damaged_shard(self._path, f"it ends after {self.size:,} bytes")
            done += count
        return pixels

    def _read(self, target: np.ndarray, start: int) -> int:
        if sys.platform != "win32" and hasattr(os, "preadv"):
            return os.preadv(self._file, [target.data], start)
        with self._lock:
            os.lseek(self._file, start, os.SEEK_SET)
            content = os.read(self._file, len(target))
        target[: len(content)] = np.frombuffer(content, dtype=np.uint8)
        return len(content)


def _damaged_shard(path: Path, problem: str) -> UserError:
    return UserError(f"the pack's file {printable(path)} is damaged: {problem}. Remove the pack and pack again.")


def _run_workers(tasks: Sequence[dict[str, Any]], workers: int, folder: Path) -> None:
    """Hands the tasks to decoding processes and waits for all; the first failure ends them all."""
    waiting: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    done: SimpleQueue[Exception | None] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    # Neither -m nor an empty entry of PYTHONPATH makes the processes import from the working directory.
    paths = [str(Path(__file__).absolute().parents[3]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-P", "-m", "resnetlab.data.storage.pack_worker"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, encoding="ascii")
        for _ in range(workers)
    ]

    answered: dict[int, float] = {}  # when each process that works last showed progress

    def serve(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        while (task := waiting.get()) is not None:
            line = _PROGRESS
            try:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                while line == _PROGRESS:
                    answered[process.pid] = time.monotonic()
                    line = process.stdout.readline()
            except OSError:
                line = ""
            answered.pop(process.pid, None)
            failure = _failure(line, process, folder)
            done.put(failure)
            if failure is not None:
                return
            syncing.submit(_sync_shard, Path(task["target"]))

    pool, syncing = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
    try:
        for process in processes:
            pool.submit(serve, process)
        label = f"packing {sum(len(task['files']) for task in tasks):,} images"
        for _ in track(range(len(tasks)), label, console=console, transient=True, disable=not is_live()):
            if (error := _next(done, answered, folder)) is not None:
                raise error
    finally:
        while not waiting.empty():
            waiting.get()
        for process in processes:
            waiting.put(None)
            process.kill()  # it is idle, or its work is not wanted any more
        pool.shutdown()
        syncing.shutdown(cancel_futures=True)
        for process in processes:
            process.communicate()
            with suppress(OSError):
                for path in folder.rglob(f"*.{process.pid}.part"):  # what it had not finished when it was killed
                    path.unlink()


def _sync_shard(target: Path) -> None:
    """Writes a finished shard to the disk while others are decoded, so that `finish_pack` waits less for the disk."""
    with suppress(OSError):  # `finish_pack` tries again
        sync(target.with_suffix(".bin"))


def _next(
    done: SimpleQueue[Exception | None], answered: dict[int, float], folder: Path, *, interval: float = NOTICE_SECONDS
) -> Exception | None:
    """Returns what the next finished task left in the queue, or an error if a process shows no progress.

    It prints every `interval` seconds that it waits.
    """
    limit, told = wait_seconds(), time.monotonic()
    while True:
        try:
            return done.get(timeout=1)
        except Empty:
            now = time.monotonic()
            process, last = min(answered.copy().items(), key=lambda item: item[1], default=(0, now))
        if now - last > limit:
            return UserError(
                f"the decoding process {process} has shown no progress for {limit:g} s (set by {WAIT_VARIABLE}). What "
                f"was packed is kept in {printable(folder)}: run the same command again to continue."
            )
        if now - max(last, told) > interval:
            told = now
            notice(
                f"waiting for the decoding process {process}, which has shown no progress for {now - last:.0f} s; the "
                f"limit is {limit:g} s ({WAIT_VARIABLE})"
            )


def _failure(line: str, process: subprocess.Popen[str], folder: Path) -> Exception | None:
    """Returns what went wrong with a task, given the line that a process answered; "" if it died."""
    try:
        answer = json.loads(line)
    except ValueError:
        process.kill()
        return UserError(
            f"a decoding process ended before its work was done (exit status {process.wait()}; killed, or out of "
            f"memory). What was packed is kept in {printable(folder)}: run the same command again to continue."
        )
    if "message" in answer:
        return UserError(answer["message"])
    if "error" in answer:
        return OSError(answer["errno"], answer["error"], str(folder))
    return None
