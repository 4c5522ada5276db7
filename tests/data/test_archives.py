from __future__ import annotations

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resnetlab.core.errors import UserError
from resnetlab.data.sources import archives
from resnetlab.data.sources.archives import extract_archive


def extract(archive: Path, folder: Path, max_bytes: int = 10**6, max_files: int = 100) -> None:
    extract_archive(archive, folder, max_bytes=max_bytes, max_files=max_files)


def make_tar(path: Path, *entries: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as target:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                target.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                target.addfile(info, io.BytesIO(entry[1]))
    return path


def make_zip(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries:
            target.writestr(name, content)
    return path


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def refused(archive: Path, words: str, **budget: int) -> None:
    """Nothing is left of what is refused."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(UserError, match=words):
        extract(archive, archive.parent / "out", **budget)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", ["w", "w:gz", "zip"])
def test_an_archive_is_told_by_its_content_and_extracted_whole(tmp_path: Path, kind: str):
    content = (("a/b/one.bin", bytes(range(256)) * 1000), ("a/two words é.txt", b"2"), ("./three", b""))
    path = tmp_path / "misnamed.png"
    if kind == "zip":
        make_zip(path, *content)
    else:
        make_tar(path, special("./", tarfile.DIRTYPE), special("a/empty", tarfile.DIRTYPE), *content, mode=kind)
    extract(path, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    assert {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()} == {
        str(Path(name)): data for name, data in content
    }
    assert (out / "a" / "empty").is_dir() == (kind != "zip")
    assert list(out.parent.iterdir()) == [out]


def test_permissions_and_owners_of_the_archive_are_not_taken_over(tmp_path: Path):
    info = tarfile.TarInfo("program")
    info.mode, info.uid, info.gid = 0o6777, 12345, 12345
    extract(make_tar(tmp_path / "a.tar", info), tmp_path / "out")
    made = (tmp_path / "out" / "program").stat()
    (tmp_path / "usual").touch()
    (tmp_path / "usual_folder").mkdir()
    usual = (tmp_path / "usual").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid) == (stat.S_IMODE(usual.st_mode), usual.st_uid)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual_folder").stat().st_mode


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil", r"contains '\.\./evil', a path with '\.\.'"),
        ("a/../../evil", r"a path with '\.\.', which may lead out of the folder"),
        ("/tmp/evil", r"contains '/tmp/evil', an absolute path"),
        ("C:/evil", r"contains 'C:/evil', an absolute path"),
        ("c:evil", "an absolute path"),
        ("\\\\host\\evil", "an absolute path"),
        ("a\\..\\..\\evil", r"a path with '\.\.'"),
        ("/".join("d" * 70), "a path of more than 64 folders"),
        ("d" * 5000, "a name that no file can have"),
    ],
)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_an_entry_that_leads_out_is_refused_before_anything_is_written(
    tmp_path: Path, make: Callable[..., Path], name: str, words: str
):
    refused(make(tmp_path / "a", ("good", b"x"), (name, b"x")), words + r".*nothing was extracted")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), r"a link to '/etc/passwd'.*Only plain files and folders"),
        (special("link", tarfile.LNKTYPE, "good"), "contains 'link', a link to 'good'"),
        (special("pipe", tarfile.FIFOTYPE), "contains 'pipe', a device or the like"),
        (special("null", tarfile.CHRTYPE), "contains 'null', a device or the like"),
        (special("disk", tarfile.BLKTYPE), "contains 'disk', a device or the like"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, entry: tarfile.TarInfo, words: str):
    refused(make_tar(tmp_path / "a.tgz", ("good", b"x"), entry), words)


def test_links_and_encrypted_files_in_a_zip_are_refused(tmp_path: Path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", r"contains 'link', a link\.")
    content = bytearray(make_zip(tmp_path / "a.zip", ("secret", b"x")).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "contains 'secret', an encrypted file")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_entries_in_each_others_place_are_refused(tmp_path: Path, make: Callable[..., Path]):
    with pytest.warns(UserWarning, match="Duplicate name") if make is make_zip else io.BytesIO():
        make(tmp_path / "a", ("x", b"1"), ("x", b"2"))
    refused(tmp_path / "a", "'x', which it contains twice")
    refused(make(tmp_path / "a", ("x/y", b"1"), ("x", b"2")), "contains 'x', as a file and as a folder")


def test_names_that_are_no_text_are_escaped_in_messages_and_kept_on_disk(tmp_path: Path):
    name = os.fsdecode(b"a\xff\nb")
    refused(make_tar(tmp_path / "a", (f"../{name}", b"x")), re.escape(r"'../a\xff\nb'"))
    extract(make_tar(tmp_path / "a", (name, b"x")), tmp_path / "out")
    assert [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()] == [b"a\xff\nb"]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_bomb_is_stopped_at_a_budget_of_bytes_and_files(tmp_path: Path, make: Callable[..., Path]):
    bomb = make(tmp_path / "bomb", *((str(number), bytes(10**6)) for number in range(5)))
    assert bomb.stat().st_size < 40_000
    refused(bomb, r"contains more than 4,999,999 bytes", max_bytes=4_999_999)
    refused(bomb, "contains more than 4 files and folders", max_bytes=10**9, max_files=4)
    extract(bomb, tmp_path / "whole", max_bytes=5 * 10**6, max_files=5)
    refused(make(tmp_path / "deep", ("/".join("abcdefgh"), b"")), "more than 7 files and folders", max_files=7)


def test_a_bomb_in_the_headers_of_tar_takes_no_memory(tmp_path: Path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 50 * 1024**2
    with gzip.open(tmp_path / "a", "wb") as target:
        target.write(info.tobuf())
        for _ in range(50):
            target.write(bytes(1024**2))
    refused(tmp_path / "a", r"is damaged or incomplete: a header of 52,428,800 bytes")
    with gzip.open(tmp_path / "a", "wb") as target:  # what comes after the last entry is unpacked for its checksum
        target.write(make_tar(tmp_path / "b", ("x", b"x"), mode="w").read_bytes())
        target.write(bytes(5 * 1024**2))
    refused(tmp_path / "a", r"contains more than .* bytes, headers included")


def test_a_directory_of_more_entries_than_a_zip_may_have_is_not_read(tmp_path: Path):
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count, first = 50_000, struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entry) * count, len(first), 0)
    (tmp_path / "many.zip").write_bytes(first + entry * count + end)
    refused(tmp_path / "many.zip", "directory of 2,350,000 bytes", max_files=100)
    refused(tmp_path / "many.zip", "twice", max_files=10_000)


def test_a_negative_size_is_refused(tmp_path: Path):
    info = tarfile.TarInfo("x")
    info.size = -512
    (tmp_path / "a").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(tmp_path / "a", "contains 'x', a file of negative size")


def test_a_zip_that_lies_about_a_size_is_stopped(tmp_path: Path):
    content = bytearray(make_zip(tmp_path / "a", ("x", bytes(10**6))).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(signature) + offset, 10)
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", "is damaged or incomplete: Bad CRC-32", max_bytes=1000)


def test_what_is_written_is_counted_whatever_was_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make_tar(tmp_path / "a", ("x", bytes(10**6)))
    honest = archives._tar_entries

    def lying(*arguments):
        for entry in honest(*arguments):
            yield archives._Entry(entry.name, entry.parts, entry.is_folder, 10, entry.open)

    monkeypatch.setattr(archives, "_tar_entries", lying)
    refused(path, "contains more than 999,999 bytes", max_bytes=999_999)
    refused(path, "'x' has 1,000,000 bytes instead of 10")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.8])
def test_a_truncated_tar_leaves_nothing_behind(tmp_path: Path, mode: str, share: float):
    whole = make_tar(tmp_path / "a", *((str(at), os.urandom(5000)) for at in range(9)), mode=mode).read_bytes()
    (tmp_path / "a").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "a", r"(is damaged or incomplete: .*|is not a \.tar, .*)Download it again\.$")


def test_a_tar_cut_between_two_entries_or_with_a_broken_header_is_noticed(tmp_path: Path):
    whole = make_tar(tmp_path / "a", ("1", bytes(512)), ("2", bytes(512)), mode="w").read_bytes()
    (tmp_path / "a").write_bytes(whole[:1024])
    refused(tmp_path / "a", "/a' .*truncated.*header")
    (tmp_path / "a").write_bytes(whole[:1030] + b"x" + whole[1031:])
    refused(tmp_path / "a", "/a' .*truncated.*header")


def test_damage_that_shows_while_writing_leaves_nothing_behind(tmp_path: Path):
    content = bytearray(make_zip(tmp_path / "a", ("1", os.urandom(9000)), ("2", os.urandom(9000))).read_bytes())
    content[15_000] ^= 1
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", "is damaged or incomplete: Bad CRC-32 for file '2'")


def test_what_is_no_archive_or_empty_is_refused(tmp_path: Path):
    refused(tmp_path / "absent.zip", r"there is no archive .*absent\.zip'\. Give the path of a \.tar")
    (tmp_path / "a.zip").write_text("hello")
    refused(tmp_path / "a.zip", r"/a\.zip' .*not .*\.tar, \.tar\.gz or \.zip")
    refused(make_tar(tmp_path / "a.tgz"), r"(contains no files|damaged or incomplete).*Download it again")
    refused(make_zip(tmp_path / "a.zip"), r"contains no files\. Download it again")


def test_a_target_that_exists_is_left_alone(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    refused(make_tar(tmp_path / "a", ("x", b"x")), "/out' already exists.*/a'")
    (tmp_path / "out" / "mine").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to("nowhere")
    refused(tmp_path / "a", "already exists")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    make_tar(tmp_path / "a", ("x", b"x"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be extracted to .*file/out': (Not a directory|File exists)"):
        extract(tmp_path / "a", tmp_path / "file" / "out")
