from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from resnetlab.core.preprocessing import to_array
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(digits_run: Run, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run.path, tmp_path / "my run")


def test_an_index_gives_a_table_a_csv_file_and_a_sheet(cli: Cli, run: Path, digits: ImageData, tmp_path: Path):
    index = int(digits.split("test").index[0])
    csv, sheet = tmp_path / "near.csv", tmp_path / "near.png"
    before = sorted(run.rglob("*"))
    code, out, err = cli("predict", run, index, "--similar", 3)
    assert (code, err) == (0, "")
    code, nothing, err = cli("predict", run, index, "--similar", 3, "--out", csv, "--sheet", sheet)
    assert (code, nothing) == (0, ""), err
    listed = pd.read_csv(csv)
    assert list(listed) == ["image", "rank", "index", "label", "similarity"]
    assert listed["image"].tolist() == 3 * [index]
    assert index not in listed["index"].tolist()
    cells = [re.findall(r"[\d.]+", line) for line in out.splitlines() if "│" in line]
    assert cells == [
        [str(row["rank"]), str(row["index"]), str(row["label"]), f"{row['similarity']:.3f}"]
        for row in listed.astype(object).to_dict("records")
    ]
    assert str(csv) in err and str(sheet) in err
    with Image.open(sheet) as three:
        width = three.width
    assert cli("predict", run, index, "--similar", 5, "--sheet", sheet)[0] == 0
    with Image.open(sheet) as five:
        assert five.format == "PNG"
        assert five.width > 1.4 * width
    assert sorted(run.rglob("*")) == before


def test_a_file_finds_itself(cli: Cli, run: Path, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    split = digits.split("test")
    Image.fromarray(to_array(split.images[torch.tensor(4)])[:, :, 0]).save("17.png")  # type: ignore[index]
    Path("17.png").rename("17")  # an image by its content, and no index because of the dot
    code, out, err = cli("predict", run, "./17", "--similar", 2, "--sheet", "near.png")
    assert code == 0, err
    assert "1.000" in out
    assert Path("near.png").is_file()


def test_images_of_a_folder_are_looked_up_one_by_one(cli: Cli, run: Path, digits: ImageData, tmp_path: Path):
    split = digits.split("test")
    (tmp_path / "new").mkdir()
    for number in (4, 5):
        pixels = to_array(split.images[torch.tensor(number)])[:, :, 0]  # type: ignore[index]
        Image.fromarray(pixels).save(tmp_path / "new" / f"{number}.png")
    code, text, err = cli("predict", run, tmp_path / "new", int(split.index[6]), "--similar", 2, "--out", "-")
    assert (code, err) == (0, "")
    listed = pd.read_csv(io.StringIO(text))
    assert listed["rank"].tolist() == 3 * [1, 2]
    first = listed[listed["rank"] == 1]
    assert first["index"].tolist()[:2] == [int(split.index[4]), int(split.index[5])]
    assert first["image"].tolist()[2] == str(int(split.index[6]))


def test_mistakes_are_explained(cli: Cli, run: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for arguments, facts in {
        ("4000", "--similar", 8): ("index 4000", "360 images"),
        (tmp_path / "gone.png", "--similar", 8): ("gone.png",),
        (tmp_path / "broken.png", "--similar", 8): ("broken.png",),
        (tmp_path / "empty", "--similar", 8): ("empty", "no images"),
        ("1", "--similar", 0): ("k must be", "got 0"),
        ("1", "--similar", 8, "--out", tmp_path): ("--out", "folder", "predictions.csv"),
        ("1", "--similar", 8, "--sheet", "near.jpg"): ("--sheet", "PNG", "near.png"),
        ("1", "--similar", 8, "--sheet", tmp_path / "no" / "a.png"): ("--sheet", "does not exist"),
        ("1", "2", "--similar", 8, "--sheet", tmp_path / "a.png"): ("--sheet", "one image"),
        ("1", "--similar", 8, "--top", 2): ("--similar", "--top"),
        ("1", "--sheet", tmp_path / "a.png"): ("--similar", "--sheet"),
    }.items():
        code, out, err = cli("predict", run, *arguments)
        assert (code, out) == (2, "")
        assert [fact for fact in facts if fact not in err] == [], err
    code, _, err = cli("predict", tmp_path / "nowhere", 1, "--similar", 8)
    assert (code, "is not a run" in err) == (2, True)


def test_a_run_without_an_evaluation_says_how_to_make_one(cli: Cli, run: Path):
    shutil.rmtree(run / "evaluation")
    code, _, err = cli("predict", run, 1, "--similar", 8)
    assert (code, f"resnetlab evaluate '{run}'" in err) == (2, True)
    (run / "model.safetensors").unlink()
    code, _, err = cli("predict", run, 1, "--similar", 8)
    assert (code, "Start a new run" in err) == (2, True)
