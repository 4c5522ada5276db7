from __future__ import annotations

import os
import pickle
import shutil
import struct
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from tests.data.idx_files import write_mnist
from tests.facts import refuses

from resnetlab.core.errors import UserError
from resnetlab.data.sources import named
from resnetlab.data.sources.cifar import load_cifar10, load_cifar100
from resnetlab.data.sources.named import (
    IMAGENETTE_CLASSES,
    find_imagenette,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)

LOADERS: dict[str, Callable[[Path, bool], object]] = {
    "MNIST": load_mnist,
    "Fashion-MNIST": load_fashion_mnist,
    "CIFAR-10": load_cifar10,
    "CIFAR-100": load_cifar100,
    "Imagenette (imagenette2-160)": lambda root, download: find_imagenette(root, download, None),
}
DRAWS = np.random.default_rng(0)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download breaks off half-way, whatever network the machine has."""

    def fail(url: str, root: object = None, download_root: object = None, **options: object) -> None:
        (Path(str(root or download_root)) / url.rsplit("/", 1)[1]).write_bytes(b"half of it")
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing was to be downloaded")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)


def write_cifar(folder: Path, labels: int, count: int = 4) -> dict[str, np.ndarray]:
    """Writes binary CIFAR records as their authors describe them; returns (count, labels + 3072) by file."""
    folder.mkdir(parents=True)
    classes, files = (100, ("train", "test")) if labels == 2 else (10, [f"data_batch_{n}" for n in range(1, 6)])
    written = {}
    for number, name in enumerate((*files, *(["test_batch"] if labels == 1 else []))):
        records = DRAWS.integers(0, 256, (count, labels + 3072), dtype=np.uint8)
        records[:, 0] %= 20 if labels == 2 else 10
        records[:, labels - 1] = (np.arange(count) + number) % classes
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        written[name] = records
    names = folder / ("fine_label_names.txt" if labels == 2 else "batches.meta.txt")
    names.write_text("".join(f"class {number}\n" for number in range(classes)) + "\n")
    return written


def pack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive, "w:gz") as target:
        target.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


def make_imagenette(root: Path, name: str) -> Path:
    for part in ("train", "val"):
        for wnid in IMAGENETTE_CLASSES:
            (root / name / part / wnid).mkdir(parents=True)
            Image.new("RGB", (8, 6)).save(root / name / part / wnid / "x.JPEG")
    return root / name


def test_digits_are_those_of_scikit_learn():
    source = load_digits()
    images, labels = source.splits["train"]
    assert (images.dtype, tuple(images.shape), int(images.max())) == (torch.uint8, (1797, 1, 8, 8), 255)
    assert (labels.dtype, source.class_names, source.mirrors) == (torch.int64, tuple("0123456789"), False)


@pytest.mark.parametrize(("load", "folder"), [(load_mnist, "MNIST"), (load_fashion_mnist, "FashionMNIST")])
def test_idx_files_are_read(tmp_path: Path, load, folder: str):
    arrays = write_mnist(tmp_path / folder / "raw")
    source = load(tmp_path, False)
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = source.splits[split]
        assert np.array_equal(images.numpy(), arrays[f"{part}_images"][:, None])
        assert np.array_equal(labels.numpy(), arrays[f"{part}_labels"])
        assert labels.dtype == torch.int64
    names = tuple("0123456789") if folder == "MNIST" else tuple(torchvision.datasets.FashionMNIST.classes)
    assert (source.class_names, source.mirrors) == (names, False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"t10k_labels": np.zeros(3, dtype=np.uint8)}, r"test .*\(20, 28, 28\).*\(3,\)"),
        ({"train_labels": np.full(30, 10, dtype=np.uint8)}, "labels of train outside 0 to 9"),
        ({"train_images": np.zeros((30, 9, 9), dtype=np.uint8)}, r"train-images.*\(30, 9, 9\); expected N x 28 x 28"),
        ({"train_images": np.zeros((0, 28, 28), dtype=np.uint8)}, "expected one label for each of one or more"),
    ],
)
def test_idx_files_that_do_not_fit_each_other_are_refused(tmp_path: Path, changed, words: str):
    write_mnist(tmp_path / "MNIST" / "raw", **changed)
    with pytest.raises(UserError, match=words + ".*IDX.*/MNIST/raw"):
        load_mnist(tmp_path, False)


def test_truncated_or_missing_idx_files_are_refused(tmp_path: Path, no_download: None):
    write_mnist(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (path.read_bytes()[:5000], b"", b"\0" * 10):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"MNIST is incomplete or damaged \(.*\)\. Put its four"):
            load_mnist(tmp_path, True)
    with path.open("wb") as file:  # sizes and a file that no memory holds; a hole takes no space
        file.write(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28))
        file.truncate(2**33)
    with pytest.raises(UserError, match=r"has 8,589,934,592 bytes instead of 3,367,254,359,296"):
        load_mnist(tmp_path, True)
    path.unlink()
    with pytest.raises(UserError, match="MNIST is incomplete or damaged"):
        load_mnist(tmp_path, True)


@pytest.mark.parametrize(
    ("load", "labels", "folder"), [(load_cifar10, 1, "cifar-10-batches-bin"), (load_cifar100, 2, "cifar-100-binary")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_binary_cifar_is_read_from_its_folder_or_archive(
    tmp_path: Path, no_download: None, capsys, load, labels: int, folder: str, packed: bool
):
    written = write_cifar(tmp_path / folder, labels)
    if packed:
        name = {1: "cifar-10-binary.tar.gz", 2: "cifar-100-binary.tar.gz"}[labels]
        pack(tmp_path / name, tmp_path / folder)
    source = load(tmp_path, False)
    assert ("extracting" in capsys.readouterr().err) == packed
    assert (tmp_path / folder).is_dir()
    assert not list(tmp_path.glob(".*"))
    train = np.concatenate([records for name, records in written.items() if not name.startswith("test")])
    test = written["test_batch" if labels == 1 else "test"]
    for split, records in (("train", train), ("test", test)):
        images, found = source.splits[split]
        assert np.array_equal(images.numpy(), records[:, labels:].reshape(-1, 3, 32, 32))
        assert np.array_equal(found.numpy(), records[:, labels - 1])
    assert (images.dtype, found.dtype, source.mirrors) == (torch.uint8, torch.int64, True)
    assert source.class_names == tuple(f"class {number}" for number in range(10 if labels == 1 else 100))


def test_damaged_binary_cifar_is_refused(tmp_path: Path):
    folder = tmp_path / "cifar-10-batches-bin"
    written = write_cifar(folder, 1)
    (folder / "data_batch_3.bin").write_bytes(written["data_batch_3"].tobytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_3\.bin .*12,291 bytes.*3,073"):
        load_cifar10(tmp_path, False)
    (folder / "data_batch_3.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"data_batch_3\.bin is damaged: it has 0 bytes"):
        load_cifar10(tmp_path, False)
    written["data_batch_3"][2, 0] = 10
    (folder / "data_batch_3.bin").write_bytes(written["data_batch_3"].tobytes())
    with pytest.raises(UserError, match="it has the label 10; expected 0 to 9"):
        load_cifar10(tmp_path, False)
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"batches\.meta\.txt has 2 different class names instead of 10"):
        load_cifar10(tmp_path, False)
    (folder / "batches.meta.txt").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(
        UserError, match=r"CIFAR-10 is incomplete: .* lacks test_batch\.bin, batches\.meta\.txt\. Move .*Put cifar"
    ):
        load_cifar10(tmp_path, True)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("load", "folder", "names"),
    [
        (
            load_cifar10,
            "cifar-10-batches-py",
            [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"],
        ),
        (load_cifar100, "cifar-100-python", ["train", "test", "meta"]),
    ],
)
def test_a_pickle_that_is_not_the_official_one_is_refused_and_never_opened(
    tmp_path: Path, no_download: None, load, folder: str, names: list[str]
):
    (tmp_path / folder).mkdir()
    for name in names:
        (tmp_path / folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with refuses(folder, "md5", "pickles", "-binary.tar.gz"):
        load(tmp_path, True)
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / folder / names[0]).read_bytes())
    assert (tmp_path / "executed").exists()  # so the payload does what it is there for


@pytest.mark.parametrize("load", [load_cifar10, load_cifar100])
def test_the_pickled_form_gives_the_same_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load):
    pixels = DRAWS.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)

    class Reader:
        def __init__(self, root: Path, train: bool) -> None:
            assert root == tmp_path
            self.data, self.targets = pixels if train else pixels[:2], [3, 1, 2, 0, 1] if train else [1, 2]
            self.classes = ["airplane", "automobile", "bird", "cat"]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Reader)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Reader)
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
    source = load(tmp_path, False)
    images, labels = source.splits["train"]
    assert np.array_equal(images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert (labels.tolist(), source.splits["test"][1].tolist()) == ([3, 1, 2, 0, 1], [1, 2])
    assert source.class_names[:2] == ("airplane", "automobile")


def test_binary_cifar_is_preferred_to_pickles(tmp_path: Path):
    write_cifar(tmp_path / "cifar-10-batches-bin", 1)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert load_cifar10(tmp_path, False).class_names[0] == "class 0"


def test_imagenette_is_extracted_from_its_archive(tmp_path: Path, no_download: None, capsys):
    pack(tmp_path / "imagenette2-160.tgz", make_imagenette(tmp_path, "imagenette2-160"))
    folder, classes = find_imagenette(tmp_path, False, None)
    assert folder == tmp_path / "imagenette2-160"
    assert (folder / "train" / "n03888257" / "x.JPEG").is_file()
    assert (list(classes), classes["n02102040"]) == (sorted(classes), "English springer")
    assert "extracting" in capsys.readouterr().err
    assert find_imagenette(tmp_path, False, 160)[0] == folder
    assert capsys.readouterr().err == ""


def test_imagenette_of_the_size_that_fits_is_taken(tmp_path: Path, no_download: None, capsys):
    small, full = make_imagenette(tmp_path, "imagenette2-160"), make_imagenette(tmp_path, "imagenette2")
    chosen = {size: find_imagenette(tmp_path, True, size)[0] for size in (None, 64, 160, 161, 224, 320, 1000)}
    assert chosen == {None: small, 64: small, 160: small, 161: full, 224: full, 320: full, 1000: full}
    pack(tmp_path / "imagenette2.tgz", full)
    pack(tmp_path / "imagenette2-320.tgz", make_imagenette(tmp_path, "imagenette2-320"))
    assert find_imagenette(tmp_path, True, 128)[0] == small
    assert find_imagenette(tmp_path, True, 224)[0] == tmp_path / "imagenette2-320"
    assert not full.exists()
    for path in (tmp_path / "imagenette2-320", tmp_path / "imagenette2-320.tgz", tmp_path / "imagenette2.tgz"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert find_imagenette(tmp_path, True, 224)[0] == small
    assert "has images of 160 pixels, which are enlarged to 224" in capsys.readouterr().err


def test_incomplete_imagenette_is_refused(tmp_path: Path):
    folder = make_imagenette(tmp_path, "imagenette2-160")
    shutil.rmtree(folder / "val" / "n03888257")
    with pytest.raises(
        UserError, match=r"\(imagenette2-160\) is incomplete: .*/val lacks n03888257\. Move .* away\. Put"
    ):
        find_imagenette(tmp_path, True, None)


def test_an_archive_that_is_damaged_or_of_something_else_leaves_nothing_behind(tmp_path: Path, no_download: None):
    archive = pack(tmp_path / "imagenette2-160.tgz", make_imagenette(tmp_path, "imagenette2-160"))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"imagenette2-160\.tgz' is damaged or incomplete: .*Download it again"):
        find_imagenette(tmp_path, False, None)
    assert list(tmp_path.iterdir()) == [archive]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    pack(archive, tmp_path / "other")
    with pytest.raises(UserError, match=r"contains no folder imagenette2-160\. Download it again from https://"):
        find_imagenette(tmp_path, False, None)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("title", LOADERS)
def test_what_is_absent_is_not_downloaded_against_the_users_will(tmp_path: Path, title: str, no_download: None):
    with pytest.raises(UserError) as error:
        LOADERS[title](tmp_path, False)
    assert str(error.value).startswith(f"{title} is not under {tmp_path}, and downloading was not allowed. Put ")
    assert "--data-root or $RESNETLAB_DATA" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("title", LOADERS)
def test_a_download_is_announced_and_one_that_fails_leaves_nothing_that_passes_as_whole(
    tmp_path: Path, title: str, offline: None, capsys
):
    for _ in range(2):
        with pytest.raises(UserError) as error:
            LOADERS[title](tmp_path / "new", True)
        assert f"{title} could not be downloaded (" in str(error.value)
        assert "no route to host" in str(error.value)
        assert ". Put " in str(error.value)
        said = capsys.readouterr().err
        assert f"downloading {title} (" in said
        assert " MB, " in said
        assert f" to {tmp_path / 'new'}/" in said
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_download_is_extracted_and_checked_by_its_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar(tmp_path / "cifar-100-binary", 2)
    archive = pack(tmp_path / "there.tar.gz", tmp_path / "cifar-100-binary")
    asked = []

    def download(url: str, root: Path, filename: str, md5: str) -> None:
        asked.append((url, md5))
        shutil.copy(archive, root / filename)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    source = load_cifar100(tmp_path / "new", True)
    assert len(source.splits["train"][1]) == 4
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-100-binary"]


def test_a_download_of_mnist_is_moved_into_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(url: str, download_root: str, filename: str, md5: str) -> None:
        write_mnist(Path(download_root))
        (Path(download_root) / filename).write_bytes(b"the archive")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    assert len(load_mnist(tmp_path, True).splits["train"][1]) == 30
    assert len(list((tmp_path / "MNIST" / "raw").iterdir())) == 4
    assert [path.name for path in (tmp_path / "MNIST").iterdir()] == ["raw"]


def test_the_archives_of_torchvision_are_the_same():
    assert {(package.url, package.md5) for package in named._IMAGENETTE.values()} == set(
        torchvision.datasets.Imagenette._ARCHIVES.values()
    )
    names = torchvision.datasets.Imagenette._WNID_TO_CLASS
    assert {wnid: all_names[0] for wnid, all_names in names.items()} == IMAGENETTE_CLASSES


def test_real_imagenette(data_root: Path):
    folder, classes = find_imagenette(data_root, False, None)
    assert len(classes) == 10
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(classes)
