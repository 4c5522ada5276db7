from __future__ import annotations

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
    code, out, err = cli("neighbors", run, index, "--k", 3, "--csv", csv, "--sheet", sheet)
    assert code == 0, err
    listed = pd.read_csv(csv)
    assert list(listed) == ["rank", "index", "label", "similarity"]
    assert index not in listed["index"].tolist()
    cells = [re.findall(r"[\d.]+", line) for line in out.splitlines() if "│" in line]
    assert cells == [
        [str(row["rank"]), str(row["index"]), str(row["label"]), f"{row['similarity']:.3f}"]
        for row in listed.astype(object).to_dict("records")
    ]
    assert f"neighbors     {csv}" in err
    assert f"contact sheet  {sheet}" in err
    with Image.open(sheet) as three:
        width = three.width
    assert cli("neighbors", run, index, "--k", 5, "--sheet", sheet)[0] == 0
    with Image.open(sheet) as five:
        assert five.format == "PNG"
        assert five.width > 1.4 * width
    assert sorted(run.rglob("*")) == before


def test_a_file_finds_itself(cli: Cli, run: Path, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    split = digits.split("test")
    Image.fromarray(to_array(split.images[torch.tensor(4)])[:, :, 0]).save("17.png")
    Path("17.png").rename("17")  # told by its content, and from an index by the dot
    code, out, err = cli("neighbors", run, "./17", "--k", 2, "--csv", "near.csv", "--sheet", "near.png")
    assert code == 0, err
    listed = pd.read_csv("near.csv")
    assert listed["index"][0] == int(split.index[4])
    assert listed["similarity"][0] == pytest.approx(1, abs=1e-5)
    assert "1.000" in out
    assert Path("near.png").is_file()


def test_mistakes_are_told_in_words(cli: Cli, run: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for arguments, message in {
        ("4000",): "no image of the evaluated split has index 4000: it has 360 images, whose indices are between",
        (tmp_path / "gone.png",): "there is no file",
        (tmp_path / "broken.png",): "broken.png' cannot be read: not an image in a format that is read",
        (tmp_path,): "cannot be read: not a regular file",
        ("1", "--k", 0): "k must be an integer of at least 1, got 0",
        ("1", "--csv", tmp_path): "is no .csv file. Name one with --csv, such as neighbors.csv",
        ("1", "--sheet", "near.jpg"): "near.jpg is no .png file. Name one with --sheet, such as neighbors.png",
        ("1", "--sheet", tmp_path / "no" / "a.png"): "to write a.png to. Make it first",
    }.items():
        code, out, err = cli("neighbors", run, *arguments)
        assert (code, out, message in err) == (2, "", True), err
    code, _, err = cli("neighbors", tmp_path / "nowhere", 1)
    assert (code, "is not a run: there is no such folder" in err) == (2, True)


def test_a_run_without_an_evaluation_says_how_to_make_one(cli: Cli, run: Path):
    shutil.rmtree(run / "evaluation")
    code, _, err = cli("neighbors", run, 1)
    assert (code, f"it has not been evaluated. Run this first: resnetlab evaluate '{run}'" in err) == (2, True)
    (run / "model.safetensors").unlink()
    code, _, err = cli("neighbors", run, 1)
    assert (code, "Continue it with: resnetlab train --resume" in err) == (2, True)
