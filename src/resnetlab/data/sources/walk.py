"""Walks image folders: which files are images, what is passed over, and which links are followed.

A file is an image by the ending of its name, also if its content is broken or in a format that is not read; a file
with another ending is one if it starts like an image. Other files are passed over, and so are hidden files and folders
and what file managers leave behind. Links:

- The folder that the user named may be a link itself.
- A link to a file inside that folder is read; a split or class folder may be a link to a folder inside it.
- A deeper link to a folder inside it is not followed: the files are found where they lie.
- A link that leaves the folder is followed only with `follow_links`.
- A link that leads back to a folder it lies in, or nowhere, is never followed.

What is passed over is counted in one warning, and what is not followed is named in another.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from resnetlab.core.errors import UserError, outside_cause
from resnetlab.core.files import printable
from resnetlab.data.sources.findings import counted, listed

_IMAGE_ENDINGS = re.compile(
    r"\.(bmp|dib|gif|jfif|jpe|jpe?g|mpo|p[bgnp]m|png|tiff?|webp"
    # Not read, so these are named as unreadable instead of being passed over:
    r"|arw|avif|cr[23]|dng|hei[cf]|j2k|jp2|jxl|nef|orf|psd|raf|rw2|svg|tga|xcf)",
    re.IGNORECASE,
)
_IMAGE_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM....\0\0\0\0|P[1-6]\s+[\d#]|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL
)
_LEFT_BEHIND = frozenset(
    ["thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle", "$recycle.bin",
     "system volume information", "lost+found", "__pycache__"]
)  # fmt: skip
_LEADS_OUT = "leads out of the folder"
_SHOWN = 10


class Walk:
    """Lists the folders and images below `root`, and remembers what was passed over or not followed."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.follow_links = follow_links
        self.refused: dict[Path, str] = {}
        self.passed: dict[Path, bool] = {}
        """What was passed over, and whether it is a folder."""

    def folders(self, folder: Path) -> list[Path]:
        """Returns the folders in a folder, sorted; a link counts as the folder that it leads to."""
        found = []
        for entry in _children(folder):
            path = Path(entry.path)
            if is_left_behind(entry.name):
                self.passed[path] = entry.is_dir(follow_symlinks=False)
            elif not entry.is_symlink():
                found += [path] if entry.is_dir() else []
            elif not path.is_file():
                if fault := self._fault(path):
                    self.refused[path] = fault
                else:
                    found.append(path)
        return found

    def images_in(self, folder: Path) -> list[Path]:
        """Returns the images directly in a folder, sorted."""
        found = []
        for entry in _children(folder):
            path = Path(entry.path)
            if not (entry.is_dir() or is_left_behind(entry.name)):
                if is_image(path):
                    found.append(path)
                elif not entry.is_symlink() or path.is_file():
                    self.passed[path] = False
        return found

    def images_below(self, folder: Path) -> list[Path]:
        """Returns the images below a folder, sorted; no folder is entered twice, so that this ends."""
        return sorted(self._images(folder, self.refused, self.passed))

    def has_images(self, folder: Path) -> bool:
        """Whether there is an image below a folder."""
        return any(True for _ in self._images(folder, {}, {}))

    def has_images_in(self, folder: Path) -> bool:
        """Whether there is an image directly in a folder."""
        return any(
            not (entry.is_dir() or is_left_behind(entry.name)) and is_image(Path(entry.path))
            for entry in _entries(folder)
        )

    def has_other_files(self, folder: Path) -> bool:
        """Whether a folder without images contains other files and no link that is not followed."""
        refused: dict[Path, str] = {}
        passed: dict[Path, bool] = {}
        found = any(True for _ in self._images(folder, refused, passed))
        return not (found or refused) and any(not is_left_behind(path.name) for path in passed)

    def describe_links(self, before: str = "") -> str:
        """Returns the sentences that name the links not followed, after `before`; empty if there are none."""
        if not self.refused:
            return ""
        first = sorted(self.refused.items())[:_SHOWN]
        named = ", ".join(f"'{printable(path)}' {fault}" for path, fault in first)
        more = f", and {len(self.refused) - _SHOWN} more" if len(self.refused) > _SHOWN else ""
        out = _LEADS_OUT in self.refused.values()
        remedy = " To follow those that lead out of it, use follow_links (--follow-links)." if out else ""
        return f"{before}Links below {printable(self.root)} were not followed: {named}{more}.{remedy}"

    def warn(self) -> None:
        """Warns the caller of the function that calls this, when links were not followed or files passed over."""
        if self.refused:
            warnings.warn(self.describe_links(), stacklevel=3)
        if self.passed:
            folders = sum(self.passed.values())
            counts = {"file": len(self.passed) - folders, "folder": folders}
            what = " and ".join(counted(count, noun) for noun, count in counts.items() if count)
            # Hidden ones last, since nobody expects images there.
            order = sorted(self.passed, key=lambda path: (path.name.startswith("."), path))
            names = listed([path.relative_to(self.root) for path in order])
            warnings.warn(f"passed over {what} in {printable(self.root)}: {names}", stacklevel=3)

    def _images(self, folder: Path, refused: dict[Path, str], passed: dict[Path, bool]) -> Iterator[Path]:
        waiting, entered = [folder], set()
        while waiting:
            parent = waiting.pop()
            if (identity := _identity(parent)) in entered:
                continue
            entered.add(identity)
            for entry in _entries(parent):
                path = Path(entry.path)
                if is_left_behind(entry.name):
                    passed[path] = entry.is_dir(follow_symlinks=False)
                elif entry.is_symlink() and (fault := self._fault(path, deep=True)):
                    refused[path] = fault
                elif entry.is_dir():
                    waiting.append(path)
                elif is_image(path):
                    yield path
                else:
                    passed[path] = False

    def _fault(self, link: Path, *, deep: bool = False) -> str | None:
        """Returns why a link is not followed; None where it is."""
        try:
            link.stat()
        except OSError as error:
            return {errno.ENOENT: "leads nowhere", errno.ELOOP: "leads round in a circle"}.get(
                error.errno or 0, f"cannot be followed ({error.strerror})"
            )
        target = Path(os.path.realpath(link))
        is_folder, is_inside = target.is_dir(), target.is_relative_to(self.real_root)
        if is_folder and Path(os.path.realpath(link.parent)).is_relative_to(target):
            return "leads back to a folder that it lies in"
        if not is_inside and not self.follow_links:
            return _LEADS_OUT
        return "leads to another folder inside" if deep and is_folder and is_inside else None


def is_image(path: Path) -> bool:
    """Whether a file is an image, by the ending of its name, or else by its first bytes."""
    if _IMAGE_ENDINGS.fullmatch(path.suffix):
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return _IMAGE_STARTS.match(file.read(16)) is not None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise outside_cause(error, f"'{printable(path)}'") or error from error
        return False


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is hidden, or one that file managers leave behind."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise _unlisted(folder, error) from error


def _children(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(_entries(folder), key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    """Returns an identity that is equal for two paths of the same folder."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unlisted(folder, error) from error
    return status.st_dev, status.st_ino


def _unlisted(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    known = outside_cause(error, f"the folder {printable(folder)}")
    return known or UserError(f"cannot list the folder {printable(folder)}: {reason}. Check the path.")
