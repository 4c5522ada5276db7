"""Archives that the authors of data sets offer: found, downloaded if allowed, and unpacked safely."""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.data.sources.archives import extract_archive

DATA_ROOT_VARIABLE = "RESNETLAB_DATA"
DOWNLOAD_FAILURES = (OSError, RuntimeError, ValueError, http.client.HTTPException)


@dataclass(frozen=True, kw_only=True)
class Package:
    """An archive that the authors of a data set offer; `folder` is what it unpacks to."""

    title: str
    folder: str
    url: str
    md5: str
    megabytes: int
    offered_by: str
    max_bytes: int
    max_files: int

    def archive(self, root: Path) -> Path | None:
        """Returns the archive that is there, compressed or not."""
        name = self.url.rsplit("/", 1)[1]
        names = (name, name.replace(".tar.gz", ".tar").replace(".tgz", ".tar"))
        return next((root / name for name in names if (root / name).is_file()), None)

    def remedy(self, root: Path) -> str:
        """Returns what the user can do if it is missing, for messages."""
        return (
            f"Put {self.url.rsplit('/', 1)[1]}, from {self.url}, or the folder {self.folder} that it unpacks to, into "
            f"{printable(root)}, or give the folder that contains it with --data-root or ${DATA_ROOT_VARIABLE}."
        )


def provide(package: Package, root: Path, download: bool) -> Path:
    """Returns the package's folder: there already, from an archive that is there, or downloaded."""
    folder = root / package.folder
    if folder.is_dir():
        return folder
    local = package.archive(root)
    if local:
        notice(f"extracting {printable(local)} to {printable(folder)}")
    elif download:
        notice(f"downloading {package.title} ({package.megabytes:,} MB, {package.offered_by}) to {printable(folder)}")
    else:
        raise UserError(
            f"{package.title} is not under {printable(root)}, and downloading was not allowed. {package.remedy(root)}"
        )
    try:
        with temporary_sibling(folder) as holder:
            archive = local or _fetch(package, holder)
            extract_archive(archive, holder / "contents", max_bytes=package.max_bytes, max_files=package.max_files)
            unpacked = holder / "contents" / package.folder
            if not unpacked.is_dir():
                raise UserError(
                    f"{printable(archive)} contains no folder {package.folder}. Download it again from {package.url}."
                )
            unpacked.rename(folder)
    except DOWNLOAD_FAILURES as error:
        if isinstance(error, UserError):
            raise
        problem = "extracted" if local else "downloaded"
        raise UserError(f"{package.title} could not be {problem} ({reason(error)}). {package.remedy(root)}") from error
    return folder


def _fetch(package: Package, holder: Path) -> Path:
    """Downloads the archive into a folder that goes when it is extracted; another md5 is an error."""
    from torchvision.datasets.utils import download_url

    name = package.url.rsplit("/", 1)[1]
    download_url(package.url, holder, filename=name, md5=package.md5)
    return holder / name


@contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """Yields a temporary folder in the folder of `target`, so that complete contents can be renamed to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as holder:
        yield Path(holder)


def reason(error: Exception) -> str:
    """Returns an error's words on one line, for messages."""
    return printable(" ".join(str(error).split())).rstrip(" .") or type(error).__name__
