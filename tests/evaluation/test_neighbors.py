from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import to_array
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.neighbors import nearest, neighbor_sheet, neighbors
from resnetlab.training.fit import fit


def test_nearest_is_the_brute_force_cosine():
    draws = np.random.default_rng(0)
    values, query = draws.normal(size=(200, 32)).astype(np.float32), draws.normal(size=32)
    frame = pd.DataFrame({"index": np.arange(200) * 2, "label": "a", "values": list(values)})
    cosines = [
        math.fsum(row.astype(float) * query) / math.sqrt(math.fsum(row.astype(float) ** 2) * math.fsum(query**2))
        for row in values
    ]
    order = sorted(range(200), key=lambda at: -cosines[at])[:5]
    found = nearest(frame, query, 5)
    assert list(found) == ["rank", "index", "label", "similarity"]
    assert found.index.tolist() == order
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["index"].tolist() == [2 * at for at in order]
    assert found["similarity"].to_numpy() == pytest.approx(np.array(cosines)[order], abs=1e-12)
    assert len(nearest(frame, query, 500)) == 200


def test_nearest_of_zeros_and_of_other_networks_embeddings():
    frame = pd.DataFrame({"index": [0, 1], "label": "a", "values": [[0.0, 0.0], [3.0, 4.0]]})
    assert nearest(frame, np.array([6.0, 8.0]), 2)["similarity"].tolist() == [1, 0]
    with pytest.raises(UserError, match=r"2 values.* 3"):
        nearest(frame, np.zeros(3), 1)
    with pytest.raises(UserError, match=r"1 of 1 .*NaN"):
        nearest(frame, np.array([1.0, np.nan]), 1)
    with pytest.raises(UserError, match=r"k .*1, got 0"):
        nearest(frame, np.zeros(2), 0)


def test_an_index_leaves_itself_out_and_a_file_finds_itself(digits_run: Run, digits: ImageData, tmp_path: Path):
    split = digits.split("test")
    own = int(split.index[5])
    found = neighbors(digits_run, own, k=6)
    assert list(found) == ["rank", "index", "label", "similarity"]
    assert own not in found["index"].tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert split.index[found.index.tolist()].tolist() == found["index"].tolist()
    closest = [neighbors(digits_run, int(index), k=1)["label"].tolist() for index in split.index[:30]]
    agree = [label == [digits.class_names[own]] for label, own in zip(closest, split.labels[:30].tolist(), strict=True)]
    assert sum(agree) >= 22  # the network errs now and then, after four epochs
    Image.fromarray(to_array(split.images[torch.tensor(5)])[:, :, 0]).save(tmp_path / "five.png")
    by_file = neighbors(digits_run.path, tmp_path / "five.png", k=7, device="cpu")
    assert by_file["index"].tolist() == [own, *found["index"]]
    assert by_file["similarity"].tolist() == pytest.approx([1, *found["similarity"]], abs=1e-5)
    assert len(neighbors(digits_run, own, k=5000)) == len(split) - 1


def test_other_images_with_the_same_pixels_are_found(digits_run: Run, tmp_path: Path):
    shutil.copytree(digits_run.path, tmp_path / "run")
    file = tmp_path / "run" / "evaluation" / "embeddings.parquet"
    table = pd.read_parquet(file)
    table.at[3, "values"] = table.at[8, "values"]
    table.to_parquet(file)
    found = neighbors(tmp_path / "run", table.at[8, "index"], k=1)
    assert found["index"].tolist() == [table.at[3, "index"]]
    assert found["similarity"].tolist() == pytest.approx([1])


def test_images_in_files_are_named_and_their_neighbors_drawn(image_folder: Path, tmp_path: Path):
    data = load_data(image_folder, image_size=16)
    run = fit("quick_resnet", data, out=tmp_path / "run", epochs=1, quiet=True)
    file = image_folder / "red" / "00.png"
    found = neighbors(run, file, k=3)
    assert list(found) == ["rank", "index", "path", "label", "similarity"]
    paths = data.split("test").paths
    assert paths is not None
    assert found["path"].tolist() == [paths[at] for at in found.index]
    sheet = neighbor_sheet(run, file, found, data=data)
    (tmp_path / "elsewhere").mkdir()
    moved = image_folder.rename(tmp_path / "elsewhere" / image_folder.name)
    assert neighbor_sheet(run, moved / "red" / "00.png", found, data=moved).tobytes() == sheet.tobytes()
    with pytest.raises(UserError, match="photos"):
        neighbor_sheet(run, moved / "red" / "00.png", found)
    with pytest.raises(UserError, match="images"):
        neighbor_sheet(run, moved / "red" / "00.png", found, data=load_data("digits"))
