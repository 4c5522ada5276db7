from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report, log_loss, top_k_accuracy_score
from tests.conftest import TINY

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.store import ImageData
from resnetlab.evaluation.forward import answer
from resnetlab.evaluation.metrics import by_class, by_image, overall
from resnetlab.models.resnet import ResNet
from resnetlab.training.fit import fit


def test_figures_equal_scikit_learns():
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 7, generator=draws), torch.randint(0, 7, (500,), generator=draws)
    names = [f"class {number}" for number in range(7)]
    probabilities = logits.double().softmax(1).numpy()
    figures = overall(logits, labels)
    assert figures["n"] == 500
    assert figures["top1"] == (logits.argmax(1) == labels).double().mean().item()
    assert figures["top5"] == top_k_accuracy_score(labels.numpy(), probabilities, k=5)
    assert figures["loss"] == pytest.approx(log_loss(labels.numpy(), probabilities))
    expected = classification_report(labels, logits.argmax(1), target_names=names, output_dict=True)
    for row in by_class(logits.argmax(1), labels, names).to_dict("records"):
        theirs = expected[row["class"]]  # type: ignore[index]
        for ours, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("support", "support")):
            assert row[ours] == pytest.approx(theirs[key])
    rows = by_image(logits, labels, torch.arange(500), names)
    assert rows["loss"].mean() == pytest.approx(figures["loss"])
    assert rows["confidence"].tolist() == pytest.approx(probabilities.max(1).tolist())
    assert (rows["label"] == rows["prediction"]).mean() == figures["top1"]


def test_a_class_without_images_and_one_never_predicted_are_zero_not_an_error():
    table = by_class(torch.tensor([0, 0]), torch.tensor([0, 1]), ["a", "b", "c"]).set_index("class")
    assert table.loc["a", ["support", "precision", "recall"]].tolist() == [1, 0.5, 1.0]
    assert table.loc["b", ["support", "precision", "recall", "f1"]].tolist() == [1, 0, 0, 0]
    assert table.loc["c", ["support", "precision", "recall", "f1"]].tolist() == [0, 0, 0, 0]


def test_with_few_classes_top5_is_one():
    assert overall(torch.randn(9, 3), torch.zeros(9, dtype=torch.long))["top5"] == 1.0


def test_answers_do_not_depend_on_the_batch_and_keep_the_mode(digits_run: Run, digits: ImageData):
    model = resnetlab.load(digits_run).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    images = digits.splits["test"].images
    assert model.preprocessing is not None
    whole = answer(model, images, model.preprocessing)
    assert [module.training for module in model.modules()] == modes
    parts = [answer(model, part, model.preprocessing).logits for part in images.split(7)]
    torch.testing.assert_close(torch.cat(parts), whole.logits)
    assert whole.logits.dtype == torch.float32


def test_tables_are_written_and_read_back(digits_run: Run, digits: ImageData):
    folder = digits_run.evaluation()
    rows, classes = (pd.read_parquet(folder / f"{name}.parquet") for name in ("per_image", "per_class"))
    embeddings = pd.read_parquet(folder / "embeddings.parquet")
    assert list(rows.columns) == ["index", "label", "prediction", "confidence", "loss"]
    assert list(classes.columns) == ["class", "support", "precision", "recall", "f1"]
    assert list(embeddings.columns) == ["index", "label", "values"]
    assert len(rows) == len(embeddings) == 360
    assert classes["support"].sum() == 360
    model = resnetlab.load(digits_run)
    logits = (
        np.stack(embeddings["values"].tolist()) @ model.fc.weight.detach().numpy().T + model.fc.bias.detach().numpy()
    )
    assert [digits.class_names[label] for label in logits.argmax(1)] == rows["prediction"].tolist()


def test_another_data_set_goes_to_a_folder_of_its_own(image_folder: Path, tmp_path: Path):
    run = fit(resnetlab.ResNetConfig(depths=(1,), widths=(4,), num_classes=2, stem="cifar"), image_folder,
              out=tmp_path / "run", epochs=1, image_size=16, quiet=True)  # fmt: skip
    own = pd.read_parquet(run.evaluation() / "per_image.parquet")
    assert own["path"].str.match(r"(red|blue)/\d\d\.png").all()
    shutil.copytree(image_folder, tmp_path / "elsewhere")
    evaluation = resnetlab.evaluate(run, tmp_path / "elsewhere")  # the same images: their splits are kept
    assert (evaluation.summary["n"], evaluation.folder) == (8, run.evaluation())
    Image.new("RGB", (20, 20)).save(tmp_path / "elsewhere" / "red" / "new.png")
    evaluation = resnetlab.evaluate(run, tmp_path / "elsewhere")
    assert evaluation.summary["n"] == 41
    assert evaluation.folder == run.evaluation("elsewhere")
    assert (run.evaluation("elsewhere") / "per_image.parquet").is_file()
    (tmp_path / "elsewhere" / "red").rename(tmp_path / "elsewhere" / "rot")
    with pytest.raises(UserError, match=r"elsewhere has other classes.*missing \['red'\], unknown .* \['rot'\]"):
        resnetlab.evaluate(run, tmp_path / "elsewhere")
    image_folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the run's images were in .*photos, and there is nothing now"):
        resnetlab.evaluate(run)


def test_another_split_does_not_overwrite_the_test_splits_tables(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=1, quiet=True)
    before = run.summary
    assert resnetlab.evaluate(run, split="train").folder == run.evaluation("train")
    assert resnetlab.evaluate(run, digits).folder == run.evaluation()
    assert run.summary == before


def test_images_that_were_trained_on_do_not_pass_for_test_images(tmp_path: Path):
    data = resnetlab.load_data("digits", split_seed=5)
    run = fit(TINY, data, out=tmp_path / "run", epochs=1, quiet=True)
    evaluation = resnetlab.evaluate(run, "digits")
    assert sorted(evaluation.per_image["index"]) == data.splits["test"].index.tolist()


def test_brackets_in_names_are_shown(digits_run: Run, digits: ImageData):
    evaluation = resnetlab.evaluate(resnetlab.load(digits_run), digits)
    named = evaluation.per_class.assign(**{"class": [f"a[bold]{number}" for number in range(10)]})
    assert "a[bold]3" in str(dataclasses.replace(evaluation, per_class=named))
    assert "a[red]" in str(dataclasses.replace(digits, class_names=tuple(f"a[red]{n}" for n in range(10))))


def test_what_cannot_be_evaluated_is_refused(digits_run: Run, digits: ImageData):
    with pytest.raises(UserError, match="evaluate needs data"):
        resnetlab.evaluate(resnetlab.load(digits_run))
    with pytest.raises(UserError, match="never trained on data"):
        resnetlab.evaluate(ResNet(TINY), digits)
    with pytest.raises(UserError, match=r"digits has no 'tset' split\. It has: train, validation, test"):
        resnetlab.evaluate(resnetlab.load(digits_run), digits, split="tset")
    large = resnetlab.load_data("digits", image_size=16)
    with pytest.raises(UserError, match=r"1 channels and 8 pixels, and digits has 1 and 16\. Load it with channels=1"):
        resnetlab.evaluate(resnetlab.load(digits_run), large)


def test_an_evaluation_prints_itself(digits_run: Run, digits: ImageData):
    text = str(resnetlab.evaluate(resnetlab.load(digits_run), digits))
    assert text.startswith("test: top-1 ")
    assert "360 images" in text
    assert "precision" in text


@pytest.fixture
def digit_files(tmp_path: Path, digits: ImageData) -> Path:
    folder = tmp_path / "files"
    (folder / "more").mkdir(parents=True)
    for number, image in enumerate(digits.splits["test"].images[:6]):
        Image.fromarray(image[0].numpy()).save(folder / ("more" if number > 3 else ".") / f"{number}.png")
    return folder


def test_files_are_predicted_as_the_same_pixels_are_in_memory(digits_run: Run, digits: ImageData, digit_files: Path):
    frame = resnetlab.predict(digits_run, digit_files, top=2)
    assert list(frame.columns) == ["path", "prediction", "confidence", "prediction_2", "confidence_2"]
    assert frame["path"].tolist() == [str(digit_files / name) for name in (
        "0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png")]  # fmt: skip
    expected = resnetlab.evaluate(resnetlab.load(digits_run), digits).per_image.head(6)
    assert frame["prediction"].tolist() == expected["prediction"].tolist()
    assert frame["confidence"].tolist() == pytest.approx(expected["confidence"].tolist(), rel=1e-4)
    same = resnetlab.predict(resnetlab.load(digits_run), digits.splits["test"].images[:6], top=2)
    assert same["confidence_2"].tolist() == pytest.approx(frame["confidence_2"].tolist(), rel=1e-4)


def test_a_file_named_twice_is_predicted_twice(digits_run: Run, digit_files: Path):
    (digit_files / ".cache").mkdir()
    (digit_files / ".cache" / "left_alone.txt").touch()
    assert len(resnetlab.predict(digits_run, [digit_files / "0.png", digit_files / "0.png", digit_files])) == 8


def test_unreadable_files_stop_a_prediction_unless_skipped(digits_run: Run, digit_files: Path):
    (digit_files / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"1 of 7 files are not images.*broken\.png"):
        resnetlab.predict(digits_run, digit_files)
    with pytest.warns(UserWarning, match="left out 1 unreadable"):
        assert len(resnetlab.predict(digits_run, [digit_files], skip_unreadable=True)) == 6


def test_predictions_of_nothing_are_refused(digits_run: Run, tmp_path: Path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="images must be paths or a tensor, got None"):
        resnetlab.predict(digits_run, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"there are no images below .*none\. Give image files"):
        resnetlab.predict(digits_run, tmp_path / "none")
    with pytest.raises(UserError, match=r"there is no file or folder 'gone\.png'"):
        resnetlab.predict(digits_run, "gone.png")
    with pytest.raises(UserError, match=r"expected uint8 images of shape \(N, 1, H, W\), got torch\.float32"):
        resnetlab.predict(digits_run, torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="top must be an integer of at least 1"):
        resnetlab.predict(digits_run, tmp_path, top=0)


def test_images_made_square_in_another_way_are_refused(image_folder: Path, tmp_path: Path):
    run = fit("quick_resnet", image_folder, image_size=16, epochs=1, out=tmp_path / "run", quiet=True)
    squashed = resnetlab.load_data(image_folder, image_size=16, fit="squash")
    with pytest.raises(UserError, match=r"made square by fit='crop', and photos has fit='squash'\. Load it"):
        resnetlab.evaluate(run, squashed)


def test_mirror_images_are_measured_apart(digits_run: Run, digits: ImageData):
    model = resnetlab.load(digits_run)
    plain, both = resnetlab.evaluate(model, digits), resnetlab.evaluate(model, digits, mirrored=True)
    assert {key: both.summary[key] for key in plain.summary} == plain.summary
    pd.testing.assert_frame_equal(both.per_image, plain.per_image)
    assert model.preprocessing is not None
    split = digits.split("test")
    mean = (answer(model, images, model.preprocessing).logits for images in (split.images, split.images.flip(-1)))
    expected = overall(sum(mean) / 2, split.labels)
    assert both.summary["mirrored_top1"] == expected["top1"]
    assert both.summary["mirrored_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert "with each image's mirror image too: top-1" in str(both)
    assert "mirror" not in str(plain)
