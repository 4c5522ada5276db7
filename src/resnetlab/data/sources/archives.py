"""Extracts archives completely or not at all, never outside the folder or beyond a budget.

The names, kinds and sizes of all entries are checked before the first byte is written. What is
written goes to a temporary folder beside the target, which takes its name when it is complete.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable

_CHUNK = 64 * 1024
_LONGEST_NAME = 4096  # characters, as in Linux
_DEEPEST_NAME = 64  # folders
_LARGEST_READ = 1024**2  # of a header of tar, which would otherwise be taken into memory whatever it declares
_LISTED = 512  # bytes of an entry in the directory of zip, on average
_HEADERS = 8 * 1024  # of tar, at most, for one honest entry: its own, a long name, padding


@dataclass(frozen=True)
class _Entry:
    """A file or folder of an archive; `parts` is its path, and empty for the archive's own root."""

    name: str
    parts: tuple[str, ...]
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


class _Budget:
    """What may still be written, in bytes."""

    def __init__(self, archive: str, max_bytes: int) -> None:
        self.archive, self.left, self.max_bytes = archive, max_bytes, max_bytes

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _over_budget(self.archive, f"{self.max_bytes:,} bytes")


def extract_archive(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Extracts a .tar, .tar.gz or .zip archive, recognized by its content, into a new folder.

    Owners, times and permissions of the archive are not taken over: files and folders are made as any
    new ones are.

    Args:
        archive: the file.
        folder: made by this call, with what is in the archive below it.
        max_bytes: of all files together, extracted; counted as declared, and again while writing.
        max_files: files and folders together.

    Raises:
        UserError: `folder` exists; the archive is absent, of another format, damaged, larger than allowed,
            or has an entry that is a link, a device, or leads out of the folder. Nothing is left behind.
    """
    shown = f"'{printable(archive)}'"
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"'{printable(folder)}' already exists, and {shown} can only be extracted to a new folder. Move or "
            "rename the existing folder."
        )
    with ExitStack() as stack:
        with _reading(shown):
            entries = _open_entries(archive, stack, max_bytes + _HEADERS * (max_files + 2), _LISTED * (max_files + 2))
            plan = _check_entries(shown, entries, max_bytes, max_files)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(
                tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part")
            )
            contents = Path(holder) / "contents"  # the holder itself is private to this user
            contents.mkdir()
            budget = _Budget(shown, max_bytes)
            for entry in plan:
                _extract(entry, contents, shown, budget)
            contents.rename(folder)
        except OSError as error:
            raise UserError(
                f"{shown} could not be extracted to '{printable(folder)}': {error.strerror or error}. "
                "Free disk space, check permissions, or choose another folder."
            ) from error


def _extract(entry: _Entry, root: Path, archive: str, budget: _Budget) -> None:
    path = root.joinpath(*entry.parts)
    if entry.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        with _reading(archive):
            source = entry.open()
        with source:
            for chunk in _chunks(source, entry, archive):
                budget.take(len(chunk))
                target.write(chunk)


def _chunks(source: IO[bytes], entry: _Entry, archive: str) -> Iterator[bytes]:
    """Yields the content of an entry; a content of another length than declared is damage."""
    count = 0
    while True:
        with _reading(archive):
            chunk = source.read(_CHUNK)
            count += len(chunk)
            if not chunk and count != entry.size:
                raise EOFError(f"'{printable(entry.name)}' has {count:,} bytes instead of {entry.size:,}")
        if not chunk:
            return
        yield chunk


def _check_entries(archive: str, entries: Iterable[_Entry], max_bytes: int, max_files: int) -> list[_Entry]:
    """Returns the entries to write; one that must not be written is an error, before anything is."""
    plan: list[_Entry] = []
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    budget = _Budget(archive, max_bytes)
    for entry in entries:
        above = entry.parts if entry.is_folder else entry.parts[:-1]
        folders.update(above[:depth] for depth in range(1, len(above) + 1))
        if entry.parts in files:
            raise _refused(archive, entry.name, "which it contains twice")
        if not entry.is_folder:
            files.add(entry.parts)
            budget.take(entry.size)
        if len(files) + len(folders) > max_files:
            raise _over_budget(archive, f"{max_files:,} files and folders")
        plan.append(entry)
    if clashes := files & folders:
        raise _refused(archive, "/".join(min(clashes)), "as a file and as a folder")
    if not files:
        raise UserError(f"{archive} contains no files. Download it again.")
    return plan


def _check_name(archive: str, name: str) -> tuple[str, ...]:
    """Returns the parts of a path that stays in the folder it is extracted to, on any system."""
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise _refused(archive, name[:80], "a name that no file can have")
    portable = name.replace("\\", "/")
    if portable.startswith("/") or re.match("[A-Za-z]:", portable):
        raise _refused(archive, name, "an absolute path")
    if ".." in portable.split("/"):
        raise _refused(archive, name, "a path with '..', which may lead out of the folder")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if len(parts) > _DEEPEST_NAME:
        raise _refused(archive, name[:80], f"a path of more than {_DEEPEST_NAME} folders")
    return parts


def _open_entries(archive: Path, stack: ExitStack, longest: int, listed: int) -> Iterator[_Entry]:
    """Returns the entries of an archive that stays open as long as `stack`.

    Args:
        archive: the file.
        stack: closes it.
        longest: bounds the unpacked bytes of tar.
        listed: bounds the bytes of the directory of zip, whose entries are objects of a thousand bytes each.
    """
    shown = f"'{printable(archive)}'"
    if not archive.is_file():
        raise UserError(f"there is no archive {shown}. Give the path of a .tar, .tar.gz or .zip file.")
    stream = stack.enter_context(_Pieces(archive.open("rb", buffering=0)))
    head = stream.read(512)
    stream.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        stream.largest = max(listed, _LARGEST_READ)
        return _zip_entries(shown, stack.enter_context(zipfile.ZipFile(stream)))
    if head.startswith(b"\x1f\x8b"):
        unpacked = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=stream)))
    elif head[257:262] == b"ustar":
        unpacked = stream
    else:
        raise UserError(
            f"{shown} is not a .tar, .tar.gz or .zip archive, although its name says so. Download it again."
        )
    return _tar_entries(shown, _BoundedStream(shown, unpacked, longest), stack)


def _zip_entries(archive: str, source: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in source.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, info.filename, "a link" if kind == stat.S_IFLNK else "a device or the like")
        if info.flag_bits & 1:
            raise _refused(archive, info.filename, "an encrypted file")
        parts = _check_name(archive, info.filename)
        if not parts and not info.is_dir():
            raise _refused(archive, info.filename, "a file without a name")

        def opened(info: zipfile.ZipInfo = info) -> IO[bytes]:
            return source.open(info)

        yield _Entry(info.filename, parts, info.is_dir(), info.file_size, opened)


def _tar_entries(archive: str, stream: _BoundedStream, stack: ExitStack) -> Iterator[_Entry]:
    source = stack.enter_context(tarfile.TarFile(fileobj=cast(IO[bytes], stream)))
    for member in source:
        if member.issym() or member.islnk():
            raise _refused(archive, member.name, f"a link to '{printable(member.linkname)}'")
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise _refused(archive, member.name, "a device or the like")
        if member.size < 0:
            raise _refused(archive, member.name, "a file of negative size")
        parts = _check_name(archive, member.name)
        if not parts and not member.isdir():
            raise _refused(archive, member.name, "a file without a name")

        def opened(member: tarfile.TarInfo = member) -> IO[bytes]:
            return cast(IO[bytes], source.extractfile(member))

        yield _Entry(member.name, parts, member.isdir(), member.size, opened)
    # tarfile takes a damaged header, or no header at all, for the end of the archive
    stream.seek(source.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is truncated, or one of its headers is damaged")
    while stream.read(_CHUNK):
        pass  # to the end of the compressed data, where its checksum is


class _Pieces(io.BufferedReader):
    """A file that refuses to be read in one piece of more than `largest` bytes."""

    largest = _LARGEST_READ

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.largest:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size)


class _BoundedStream:
    """The unpacked bytes of a tar archive, refused in larger pieces or further than an honest one needs."""

    def __init__(self, archive: str, stream: IO[bytes], longest: int) -> None:
        self.archive, self.stream, self.longest = archive, stream, longest

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self._check(self.stream.tell())
        return self.stream.read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if position < 0:
            raise tarfile.ReadError("a file of negative size")
        self._check(position)
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.longest:
            raise _over_budget(self.archive, f"{self.longest:,} bytes, headers included")


@contextmanager
def _reading(archive: str) -> Iterator[None]:
    """Turns whatever damaged data raise into one error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{archive} cannot be read: {error.strerror}. Check permissions and disk.") from error
        reason = str(error).rstrip(" .") or type(error).__name__
        raise UserError(f"{archive} is damaged or incomplete: {printable(reason)}. Download it again.") from error


def _refused(archive: str, name: str, problem: str) -> UserError:
    return UserError(
        f"{archive} contains '{printable(name)}', {problem}. Only plain files and folders are extracted, so "
        "nothing was extracted. Get the archive from a source that you trust."
    )


def _over_budget(archive: str, budget: str) -> UserError:
    return UserError(
        f"{archive} contains more than {budget}, which is more than this data set should have. Nothing was "
        "extracted. Get the archive from a source that you trust, or extract it yourself."
    )
