# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, entropy
from sklearn.metrics import classification_report, log_loss, top_k_accuracy_score
from tests.conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode

import resnetlab
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.evaluation.forward import Answers, answer
from resnetlab.evaluation.metrics import by_class, by_image, overall, wilson_interval
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
    classes = by_class(logits, labels, names)
    for row in classes.to_dict("records"):
        theirs = expected[row["class"]]  # type: ignore[index]
        for ours, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("support", "support")):
            assert row[ours] == pytest.approx(theirs[key])
    rows = by_image(logits, labels, torch.arange(500), names)
    assert classes["mean_confidence"].tolist() == pytest.approx(rows.groupby("label")["confidence"].mean().tolist())
    assert rows["loss"].mean() == pytest.approx(figures["loss"])
    assert rows["confidence"].tolist() == pytest.approx(probabilities.max(1).tolist())
    assert (rows["label"] == rows["prediction"]).mean() == figures["top1"]
    assert rows["correct"].equals(rows["label"] == rows["prediction"])
    assert rows["entropy"].tolist() == pytest.approx(entropy(probabilities, axis=1).tolist())
    highest = np.sort(probabilities, axis=1)[:, ::-1]
    assert rows["margin"].tolist() == pytest.approx((highest[:, 0] - highest[:, 1]).tolist())
    assert np.stack(rows["top5_confidence"].tolist()) == pytest.approx(highest[:, :5])
    assert [row[0] for row in rows["top5"]] == rows["prediction"].tolist()
    assert np.mean([label in row for label, row in zip(rows["label"], rows["top5"], strict=True)]) == figures["top5"]
    own = probabilities[np.arange(500), labels.numpy()]
    assert rows["label_probability"].tolist() == pytest.approx(own.tolist())
    others = np.where(np.arange(7) == labels.numpy()[:, None], 0, probabilities).max(1)
    assert rows["suspicion"].tolist() == pytest.approx(np.log(others / own).tolist(), abs=1e-6)
    assert ((rows["suspicion"] > 0) == ~rows["correct"]).all()


def test_of_equal_logits_the_first_class_is_taken_in_every_column():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 8])
    rows = by_image(logits, torch.tensor([2, 0]), torch.arange(2), list("abcdefgh"))
    assert rows["prediction"].tolist() == ["abcdefgh"[number] for number in logits.argmax(1)]
    assert rows["top5"].tolist() == [list("bcaef"), list("abcde")]
    assert rows["suspicion"].tolist() == [0, 0]


def test_equal_images_share_a_group():
    digests = ["d", "a", "b", "a", "c", "d", "a"]
    rows = by_image(torch.zeros(7, 2), torch.zeros(7, dtype=torch.long), torch.arange(7), ["a", "b"], digests=digests)
    assert rows["group"].tolist() == [0, 1, -1, 1, -1, 0, 1]
    without = by_image(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.arange(1), ["a", "b"])
    assert "group" not in without


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 9), (9401, 10_000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_is_scipys(successes: int, n: int, confidence: float):
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_ends_of_the_interval_are_exact_and_of_nothing_nothing_is_known():
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(0, 3)[0] == 0
    assert wilson_interval(3, 3)[1] == 1


def test_shares_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"successes .*4 of 3"):
        wilson_interval(4, 3)
    with pytest.raises(UserError, match=r"successes .*0, got -1"):
        wilson_interval(-1, 3)
    with pytest.raises(UserError, match=r"confidence .*0 .*1, got 95"):
        wilson_interval(1, 3, 95)


def test_a_class_without_images_has_no_figures_and_one_never_predicted_has_zeros():
    table = by_class(torch.tensor([[5.0, 0, 0], [1, 0, 0]]), torch.tensor([0, 1]), ["a", "b", "c"]).set_index("class")
    assert table.loc["a", ["support", "precision", "recall"]].tolist() == [1, 0.5, 1.0]
    assert table.loc["b", ["support", "precision", "recall", "f1"]].tolist() == [1, 0, 0, 0]
    assert table.loc["c", "support"] == 0
    assert table.loc["c", ["precision", "recall", "f1"]].isna().all()
    assert table.loc["a", ["recall_low", "recall_high"]].tolist() == list(wilson_interval(1, 1))
    assert table.loc["b", ["recall_low", "recall_high"]].tolist() == list(wilson_interval(0, 1))
    assert table.loc["c", ["recall_low", "recall_high"]].isna().all()
    assert table["mean_confidence"].tolist()[:2] == pytest.approx([1 / (1 + 2 / math.e**5), 1 / (1 + 2 / math.e)])
    assert math.isnan(table.loc["c", "mean_confidence"])


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


class Operations(TorchDispatchMode):
    """Records the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **kwargs or {})


def test_many_pixels_are_answered_by_a_packed_copy(digits_run: Run):
    model = ResNet(dataclasses.replace(TINY, stem="imagenet"))
    preprocessing = resnetlab.load(digits_run).preprocessing
    assert preprocessing is not None
    model.preprocessing, model.class_names = preprocessing, tuple("abcdefghij")
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    images = torch.randint(0, 256, (2, 1, 1024, 1024), dtype=torch.uint8)
    with Operations() as many:
        found = answer(model, images, preprocessing)
    with Operations() as few:
        expected = answer(model, images[:1], preprocessing).logits
    assert ["_convolution_pointwise" in str(used.names) for used in (many, few)] == [True, False]
    torch.testing.assert_close(found.logits[:1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(answer(model, images, preprocessing).logits, found.logits)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])


def test_tables_are_written_and_read_back(digits_run: Run, digits: ImageData):
    folder = digits_run.evaluation()
    rows, classes = (pd.read_parquet(folder / f"{name}.parquet") for name in ("per_image", "per_class"))
    embeddings = pd.read_parquet(folder / "embeddings.parquet")
    assert list(rows.columns) == [
        "index", "label", "prediction", "confidence", "loss", "correct", "label_probability", "margin", "entropy",
        "suspicion", "top5", "top5_confidence", "group",
    ]  # fmt: skip
    assert list(classes.columns) == [
        "class", "support", "precision", "recall", "f1", "recall_low", "recall_high", "mean_confidence",
    ]  # fmt: skip
    assert list(embeddings.columns) == ["index", "label", "values"]
    assert len(rows) == len(embeddings) == 360
    assert classes["support"].sum() == 360
    model = resnetlab.load(digits_run)
    logits = (
        np.stack(embeddings["values"].tolist()) @ model.fc.weight.detach().numpy().T + model.fc.bias.detach().numpy()
    )
    assert [digits.class_names[label] for label in logits.argmax(1)] == rows["prediction"].tolist()


def test_the_written_summary_and_tables_agree(digits_run: Run):
    folder = digits_run.evaluation()
    rows = pd.read_parquet(folder / "per_image.parquet")
    bins, pairs = (pd.read_parquet(folder / f"{name}.parquet") for name in ("reliability", "confused_pairs"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["top1_low"], summary["top1_high"]) == wilson_interval(int(rows["correct"].sum()), 360)
    filled = bins[bins["count"] > 0]
    gaps = (filled["accuracy"] - filled["confidence"]).abs()
    assert len(bins) == 15
    assert summary["ece"] == pytest.approx((gaps * filled["count"]).sum() / 360)
    assert summary["mce"] == gaps.max()
    wrong = rows[~rows["correct"]]
    assert pairs["count"].sum() == len(wrong) > 0
    first = pairs.iloc[0]
    assert first["count"] == (wrong[["label", "prediction"]] == first[["label", "prediction"]]).all(axis=1).sum()
    assert first["share"] == first["count"] / (rows["label"] == first["label"]).sum()


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_a_single_image_of_any_number_of_classes_has_all_figures(digits: ImageData, tmp_path: Path, classes: int):
    names = tuple("abcdefg"[:classes])
    model = ResNet(dataclasses.replace(TINY, num_classes=classes))
    model.preprocessing, model.class_names = digits.preprocessing, names
    split = digits.splits["test"]
    one = dataclasses.replace(split, images=split.images[:1], labels=torch.tensor([classes - 1]), index=split.index[:1])
    data = dataclasses.replace(digits, splits={"test": one}, class_names=names)
    evaluation = evaluate_split(model, data).save(tmp_path / "evaluation")
    row = evaluation.per_image.iloc[0]
    assert len(row["top5"]) == len(row["top5_confidence"]) == min(5, classes)
    assert evaluation.summary["ece"] == evaluation.summary["mce"] == abs(row["correct"] - row["confidence"])
    assert row["margin"] == (1 if classes == 1 else row["top5_confidence"][0] - row["top5_confidence"][1])
    assert math.isnan(row["suspicion"]) == (classes == 1)
    assert evaluation.per_class["support"].tolist() == [0] * (classes - 1) + [1]
    text = str(evaluation)
    assert ", 1 image\n" in text
    assert ("no images of" in text) == (classes > 1)


def test_a_network_that_returns_nan_has_figures(digits_run: Run, digits: ImageData, tmp_path: Path):
    answers = Answers(torch.full((360, 10), math.nan), torch.zeros(360, 4))
    evaluation = evaluate_split(resnetlab.load(digits_run), digits, answers=answers).save(tmp_path / "evaluation")
    assert all(math.isnan(evaluation.summary[name]) for name in ("loss", "ece", "mce"))
    assert evaluation.per_image[["confidence", "margin", "entropy", "suspicion"]].isna().all(axis=None)
    assert evaluation.reliability["count"].sum() == 0


def test_another_data_set_goes_to_a_folder_of_its_own(image_folder: Path, tmp_path: Path):
    run = fit(resnetlab.ResNetConfig(depths=(1,), widths=(4,), num_classes=2, stem="cifar"), image_folder,
              out=tmp_path / "run", epochs=1, image_size=16, quiet=True)  # fmt: skip
    own = pd.read_parquet(run.evaluation() / "per_image.parquet")
    assert own["path"].str.match(r"(red|blue)/\d\d\.png").all()
    shutil.copytree(image_folder, tmp_path / "elsewhere")
    evaluation = resnetlab.evaluate(run, tmp_path / "elsewhere")  # the same images: their splits are kept
    assert (evaluation.summary["n"], evaluation.folder) == (8, run.evaluation())
    Image.new("RGB", (20, 20)).save(tmp_path / "elsewhere" / "red" / "new.png")
    shutil.copy(tmp_path / "elsewhere" / "red" / "new.png", tmp_path / "elsewhere" / "red" / "twin.png")
    evaluation = resnetlab.evaluate(run, tmp_path / "elsewhere")
    assert evaluation.summary["n"] == 42
    twins = evaluation.per_image["path"].isin(["red/new.png", "red/twin.png"])
    assert evaluation.per_image["group"].tolist() == [0 if twin else -1 for twin in twins]
    assert evaluation.folder == run.evaluation("elsewhere")
    assert (run.evaluation("elsewhere") / "per_image.parquet").is_file()
    (tmp_path / "elsewhere" / "red").rename(tmp_path / "elsewhere" / "rot")
    with pytest.raises(UserError, match=r"elsewhere.*'rot'.*'blue', 'red'"):
        resnetlab.evaluate(run, tmp_path / "elsewhere")
    image_folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="photos"):
        resnetlab.evaluate(run)


def test_images_of_some_of_the_classes_are_enough(digits_run: Run, digits: ImageData):
    split, model = digits.split("test"), resnetlab.load(digits_run)
    chosen = torch.nonzero((split.labels == 7) | (split.labels == 3))[:, 0]
    assert isinstance(split.images, torch.Tensor)
    labels = (split.labels[chosen] == 3).long()
    some = dataclasses.replace(
        digits,
        class_names=("7", "3"),  # in another order, too
        splits={"test": dataclasses.replace(split, images=split.images[chosen], labels=labels, index=chosen)},
    )
    evaluation, whole = evaluate_split(model, some), evaluate_split(model, digits)
    pd.testing.assert_frame_equal(
        evaluation.per_image.drop(columns=["index", "group"], errors="ignore"),
        whole.per_image.iloc[chosen.tolist()].reset_index(drop=True).drop(columns=["index", "group"], errors="ignore"),
    )
    classes = evaluation.per_class.set_index("class")
    assert list(classes.index) == list(digits.class_names)
    assert classes["recall"].isna().tolist() == [name not in ("3", "7") for name in digits.class_names]
    assert classes.loc["3", "recall"] == whole.per_class.set_index("class").loc["3", "recall"]
    text = str(evaluation)
    assert "8 of the network's 10 classes: 0, 1, 2, 4, 5, 6, 8, 9\n" in text
    assert "nan" not in text
    assert "no images of" not in str(whole)


def test_many_classes_without_images_are_not_all_named(digits: ImageData, tmp_path: Path):
    names = tuple(f"[{number}]" for number in range(60))
    model = ResNet(dataclasses.replace(TINY, num_classes=60))
    model.preprocessing, model.class_names = digits.preprocessing, names
    text = str(evaluate_split(model, dataclasses.replace(digits, class_names=names[:10])))
    assert "50 of the network's 60 classes: [10], [11], [12]," in text.replace("\n", " ")
    assert "[19], ..." in text.replace("\n", " ")
    stranger = dataclasses.replace(digits, class_names=tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"'a', .*, 'j'.*'\[0\]', .*'\[19\]' and 40 more"):
        evaluate_split(model, stranger)


def test_another_split_does_not_overwrite_the_test_splits_tables(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", epochs=1, quiet=True)
    before = run.summary
    assert resnetlab.evaluate(run, split="train").folder == run.evaluation("train")
    assert resnetlab.evaluate(run, digits).folder == run.evaluation()
    assert run.summary == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_evaluation_does_not_depend_on_the_memory_format_of_training(
    memory_format: str, precision: str, digits: ImageData, tmp_path: Path
):
    config = dataclasses.replace(TINY, block="bottleneck")  # 1x1 kernels
    model = resnetlab.ResNet(config)
    settings = {"precision": precision, "memory_format": memory_format}
    run = fit(model, digits, out=tmp_path / "run", epochs=1, quiet=True, **settings)
    assert run.settings["machine"]["memory_format"] == memory_format
    after_fit = run.summary
    strides = {name: weight.stride() for name, weight in model.named_parameters()}
    other = resnetlab.load(run).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    by_hand = [resnetlab.evaluate(network, digits).summary for network in (model, other, resnetlab.load(run))]
    assert by_hand == [resnetlab.evaluate(run).summary] * 3
    assert run.summary == after_fit
    assert {name: weight.stride() for name, weight in model.named_parameters()} == strides


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
    with pytest.raises(UserError, match="data"):
        resnetlab.evaluate(resnetlab.load(digits_run))
    with pytest.raises(UserError, match=r"preprocessing.*class_names"):
        resnetlab.evaluate(ResNet(TINY), digits)
    with pytest.raises(UserError, match=r"'tset'.*train, validation, test"):
        resnetlab.evaluate(resnetlab.load(digits_run), digits, split="tset")
    large = resnetlab.load_data("digits", image_size=16)
    with pytest.raises(UserError, match="image_size=8"):
        resnetlab.evaluate(resnetlab.load(digits_run), large)


def test_an_evaluation_prints_itself(digits_run: Run, digits: ImageData):
    evaluation = resnetlab.evaluate(resnetlab.load(digits_run), digits)
    text, (low, high) = str(evaluation), (evaluation.summary[key] for key in ("top1_low", "top1_high"))
    assert text.startswith(f"test: top-1 {evaluation.summary['top1']:.2%} ({low:.2%} to {high:.2%}), top-5 ")
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
    with pytest.raises(UserError, match=r"1 of 7 files.*broken\.png.*--skip-unreadable"):
        resnetlab.predict(digits_run, digit_files)
    with pytest.warns(UserWarning, match=r"1 unreadable.*broken"):
        assert len(resnetlab.predict(digits_run, [digit_files], skip_unreadable=True)) == 6


def test_predictions_of_nothing_are_refused(digits_run: Run, tmp_path: Path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"images .*None"):
        resnetlab.predict(digits_run, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no images .*none"):
        resnetlab.predict(digits_run, tmp_path / "none")
    with pytest.raises(UserError, match=r"gone\.png"):
        resnetlab.predict(digits_run, "gone.png")
    with pytest.raises(UserError, match=r"top .*1, got"):
        resnetlab.predict(digits_run, tmp_path, top=0)


def test_images_made_square_in_another_way_are_refused(image_folder: Path, tmp_path: Path):
    run = fit("quick_resnet", image_folder, image_size=16, epochs=1, out=tmp_path / "run", quiet=True)
    squashed = resnetlab.load_data(image_folder, image_size=16, crop_mode="squash")
    with pytest.raises(UserError, match="crop_mode='crop'"):
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
    assert f"{both.summary['mirrored_top1']:.2%}" in str(both)
    assert "mirror" not in str(plain)
