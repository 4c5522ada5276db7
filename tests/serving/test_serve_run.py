"""A run is exported when it is served, and answers as `predict` does; its threshold comes from held-out images."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.facts import refuses
from tests.serving.conftest import colors_run, eventually, photo, served, write_similar_file

import resnetlab
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.serving.sources import Source
from resnetlab.serving.threshold import lowest_trusted


def test_the_threshold_is_where_answers_are_right():
    confidence = np.linspace(0.005, 0.995, 100)
    correct = confidence > 0.62
    found = lowest_trusted(confidence, correct)
    assert found == 0.6
    assert correct[confidence >= found].mean() >= 0.95
    assert lowest_trusted(confidence, np.ones(100, dtype=bool)) == 0.5
    assert lowest_trusted(confidence, np.zeros(100, dtype=bool)) == 0.95
    assert lowest_trusted(np.array([]), np.array([], dtype=bool)) == 0.95


def test_the_nearest_training_images_are_answered(tmp_path: Path):
    file = colors_run(tmp_path / "run")
    with served(file) as (client, _):
        assert client.get("/v1/model").json()["similar"]
        whole = client.post("/v1/predict?similar=true", content=photo("green")).json()
        assert whole["similar_images"] == "ready"
        answer = whole["predictions"][0]
        assert [one["class"] for one in answer["similar"]] == ["green", "green", "blue"]
        assert 1 >= answer["similar"][0]["similarity"] > answer["similar"][1]["similarity"] > 0
        assert all(one["image"].startswith("data:image/png;base64,") for one in answer["similar"])
        assert "embedding" not in answer
        whole = client.post("/v1/predict", content=photo("green")).json()
        assert "similar_images" not in whole and "similar" not in whole["predictions"][0]
    with served(file, similar=False) as (client, _):
        assert not client.get("/v1/model").json()["similar"]
        assert client.post("/v1/predict?similar=true", content=photo("green")).status_code == 422


def test_similar_images_of_other_weights_are_not_shown(tmp_path: Path):
    file = colors_run(tmp_path / "run")
    write_similar_file(file.parent, weights="of another network")
    said: list[str] = []
    opened = Source(file, say=said.append)()
    assert opened.similar is not None and opened.similar.nearest(np.ones(3)) == []
    assert opened.similar.state in ("preparing", "unavailable")
    assert "run.toml" in eventually(lambda: said, 60)[0]
    assert opened.similar.state == "unavailable"


@pytest.mark.slow
def test_a_packaged_network_is_exported_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RESNETLAB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with served("digits") as (client, _):
        assert client.get("/v1/model").json()["name"] == "digits"
    opened = Source("digits", say=said.append)()
    assert opened.exported.path.is_relative_to(tmp_path / "exports")
    assert said == []
    Path("digits").mkdir()
    with refuses("digits", "run.toml"):
        Source("digits", say=said.append)


@pytest.mark.slow
def test_a_run_that_cannot_be_exported_says_why(digits_run: Run, tmp_path: Path):
    run = shutil.copytree(digits_run.path, tmp_path / "run")
    (run / "model.safetensors").write_bytes(b"?" * 100)
    with refuses(str(run), "model.safetensors"):
        resnetlab.serve(run, port=0, background=True, quiet=True)


@pytest.mark.slow
def test_a_run_is_exported_once_and_answers_as_predict_does(digits_run: Run, digits: ImageData, tmp_path: Path):
    images = digits.split("train").images
    assert isinstance(images, torch.Tensor)
    trained, label = tmp_path / "trained.png", digits.class_names[int(digits.split("train").labels[5])]
    Image.fromarray(images[5, 0].numpy()).save(trained)
    run = shutil.copytree(digits_run.path, tmp_path / "run")
    resnetlab.evaluate(run)
    draws = np.random.default_rng(0)
    photos = []
    for place in range(6):
        file = tmp_path / f"{place}.png"
        Image.fromarray(draws.integers(0, 256, (9 + 7 * place, 31), dtype=np.uint8)).save(file)
        photos.append(file)
    table = resnetlab.predict(run, photos, top=10)
    exported = run / "export" / "model.onnx"
    for _ in range(2):
        with served(run) as (client, _):
            files = [("image", (path.name, path.read_bytes())) for path in photos]
            answers = client.post("/v1/predict?top=10", files=files).json()["predictions"]
            assert 0.5 <= client.get("/v1/model").json()["unsure_below"] <= 0.95
            known = client.post("/v1/predict?similar=true", content=trained.read_bytes())
            while not (similar := known.json()["predictions"][0]["similar"]):
                known = client.post("/v1/predict?similar=true", content=trained.read_bytes())
            assert (similar[0]["class"], len(similar)) == (label, 3)
            assert similar[0]["similarity"] > 0.999
        for row, answer in zip(table.to_dict("records"), answers, strict=True):
            assert answer["class"] == row["prediction"]
            assert answer["score"] == pytest.approx(row["confidence"], abs=1e-4)
        made = exported.stat().st_mtime_ns
    said: list[str] = []
    assert Source(run, say=said.append)().exported.name == "run"
    assert (exported.stat().st_mtime_ns, said) == (made, [])
    (run / "model.safetensors").touch()
    Source(run, say=said.append)()
    assert exported.stat().st_mtime_ns > made
    assert "export" in said[0]
    again = resnetlab.predict(exported, [io.BytesIO(path.read_bytes()) for path in photos], top=10)
    assert again["prediction"].tolist() == [answer["class"] for answer in answers]
