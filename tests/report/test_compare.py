import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from tests.conftest import TINY

from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json, write_toml
from resnetlab.core.runs import Run, history_columns
from resnetlab.data.load import load_data
from resnetlab.models.config import ResNetConfig
from resnetlab.report.comparison.compare import compare, differences
from resnetlab.report.comparison.curves import draw_comparison
from resnetlab.training.fit import fit
from resnetlab.weights.file import load
from resnetlab.weights.tensors import read_tensors, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """Real trainings of a second: two epochs, one epoch of another network, and one without a validation split."""
    folder = tmp_path_factory.mktemp("runs")
    other = ResNetConfig(**{**TINY.to_dict(), "widths": (4, 12), "shortcut": "B"})
    small = load_data("digits", validation_fraction=0.0, limit=200)
    return {
        "first": fit(TINY, digits, out=folder / "first", epochs=2, quiet=True),
        "second": fit(other, digits, out=folder / "second", epochs=1, seed=1, quiet=True, **{"augment.rotation": 10.0}),
        "unvalidated": fit(TINY, small, out=folder / "unvalidated", epochs=3, quiet=True),
    }


def copy_of(run, folder, *, rows=None, settings=None, summary=None):
    """A copy of a run with this history, with these changes of settings ("data.limit": 5), or with another summary."""
    shutil.copytree(run.path, folder)
    changed = run.settings
    for key, value in (settings or {}).items():
        *tables, name = key.split(".")
        changed = {**changed}
        table = changed
        for inner in tables:
            table[inner] = {**table[inner]}
            table = table[inner]
        table[name] = value
    write_toml(folder / "run.toml", changed)
    if rows is not None:
        tensors, description = read_tensors(Run(folder).weights)
        description["training"]["history"] = history_columns(rows)
        write_tensors(Run(folder).weights, tensors, description)
        Run(folder).write_history(rows)
    if summary is not None:
        write_json(folder / "evaluation" / "summary.json", summary)
    return Run(folder)


def unfinished(run, folder, epochs):
    """What a run looked like when it had finished so many epochs."""
    copy = copy_of(run, folder, rows=run.history_rows()[:epochs])
    copy.weights.unlink()
    shutil.rmtree(copy.evaluation())
    return copy


def made_rows(epochs, *, loss=1.0, seconds=10.0):
    return [
        {"epoch": epoch, "step": epoch, "lr": 0.1, "train_loss": 1.2 * loss / epoch, "train_top1": 1 - 0.6 / epoch,
         "val_loss": loss / epoch, "val_top1": 1 - 0.5 / epoch, "images_per_second": 9.0, "seconds": seconds * epoch}
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a comparison and returns the figure, as matplotlib laid it out, and the file's pixels."""
    figures, save = [], Figure.savefig

    def keep(figure, *positional, **named):
        figures.append(figure)
        save(figure, *positional, **named)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)

    def draw(runs, **options):
        path = draw_comparison(runs, tmp_path / "comparison.png", **options)
        assert path == tmp_path / "comparison.png"
        return figures[-1], np.asarray(Image.open(path).convert("RGB"))

    return draw


def words_of(figure):
    legends = [text.get_text() for legend in figure.legends for text in (legend.get_title(), *legend.get_texts())]
    return [*legends, *(text.get_text() for text in figure.texts)]


def curves(axes):
    """The lines of a panel as (color, is solid, points)."""
    lines = [(to_hex(line.get_color()), line.get_linestyle() == "-", line.get_xydata()) for line in axes.get_lines()]
    return [(color, solid, points[np.isfinite(points).all(1)].tolist()) for color, solid, points in lines]


def test_a_row_tells_what_the_files_of_a_run_hold(runs):
    run = runs["first"]
    (row,) = compare([run]).to_dict("records")
    history, summary = run.history, run.summary
    assert row == {
        "run": "first", "model": "custom", "data": "digits", "recipe": "quick", "seed": 0,
        "epochs": 2, "epochs_planned": 2, "parameters": sum(value.numel() for value in load(run).parameters()),
        "best_val_top1": history["val_top1"].max(), "best_epoch": 1 + int(history["val_top1"].argmax()),
        "last_val_top1": history["val_top1"][1], "split": "test", "n": 360, "top1": summary["top1"],
        "top5": summary["top5"], "loss": summary["loss"],
        "images_per_second": history["images_per_second"].mean(), "minutes": history["seconds"][1] / 60,
    }  # fmt: skip


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy(runs, tmp_path):
    rows = made_rows(4)
    for row, top1, speed in zip(rows, (math.nan, 0.5, 0.75, 0.75), (1.0, 2.0, 9.0, 4.0), strict=True):
        row |= {"val_top1": top1, "images_per_second": speed}
    table = compare(copy_of(runs["first"], tmp_path / "run", rows=rows))
    assert table[["best_val_top1", "best_epoch", "last_val_top1"]].values.tolist() == [[0.75, 3, 0.75]]
    assert table["images_per_second"].tolist() == [3.0]


def test_rows_come_in_the_order_given_and_what_is_unknown_is_missing(runs, tmp_path):
    begun, stopped = (
        unfinished(runs["first"], tmp_path / "begun", 0),
        unfinished(runs["first"], tmp_path / "stopped", 1),
    )
    with pytest.warns(UserWarning, match="different images of digits"):
        table = compare([begun.path, str(stopped.path), runs["unvalidated"]]).set_index("run")
    assert table.index.tolist() == ["begun", "stopped", "unvalidated"]
    assert table["epochs"].tolist() == [0, 1, 3] and table["epochs_planned"].tolist() == [2, 2, 3]
    evaluated = ["split", "n", "top1", "top5", "loss", "parameters"]
    assert table[evaluated].isna().values.tolist() == [[True] * 6, [True] * 6, [False] * 6]
    validated = ["best_val_top1", "best_epoch", "last_val_top1"]
    assert table[validated].isna().values.tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert table["minutes"].isna().tolist() == [True, False, False]
    assert {str(table[name].dtype) for name in ("n", "parameters", "best_epoch")} == {"Int64"}


def test_names_are_as_long_as_it_takes_to_tell_runs_apart(tmp_path):
    places = [tmp_path / place for place in ("a/x/run", "b/x/run", "y/run", "other")]
    for place in places:
        shutil.copytree(GOLDEN, place)
    assert compare(places)["run"].tolist() == ["a/x/run", "b/x/run", "y/run", "other"]
    assert compare(places[2:])["run"].tolist() == ["run", "other"]
    assert differences(places).columns.tolist() == ["a/x/run", "b/x/run", "y/run", "other"]
    (tmp_path / "y" / "link").symlink_to(places[0])
    assert compare([tmp_path / "y" / "link"])["run"].tolist() == ["run"]
    shutil.copytree(GOLDEN, tmp_path / "two\nlines")
    assert compare(tmp_path / "two\nlines")["run"].tolist() == [r"two\nlines"]


@pytest.mark.parametrize("function", [compare, differences, lambda runs: draw_comparison(runs, "never.png")])
def test_what_cannot_be_compared_is_refused(function, tmp_path):
    with pytest.raises(UserError) as none:
        function([])
    assert str(none.value) == "expected at least one run, got none. Give the folders that `resnetlab train` made."
    with pytest.raises(UserError, match="golden/run is given twice"):
        function([GOLDEN, GOLDEN.parent / ".." / "golden" / "run"])
    with pytest.raises(UserError, match="gone is not a run"):
        function([GOLDEN, tmp_path / "gone"])
    assert not Path("never.png").exists()


def test_differences_are_the_settings_that_were_changed(runs):
    changed = differences([runs["first"], runs["second"]])
    assert changed.index.name == "setting"
    assert {key: list(values) for key, values in changed.T.to_dict("list").items()} == {
        "model.config.widths": [[4, 8], [4, 12]],
        "model.config.shortcut": ["A", "B"],
        "recipe.epochs": [2, 1],
        "recipe.augment.rotation": [0.0, 10.0],
        "seed": [0, 1],
    }
    assert differences([runs["first"]]).shape == (0, 1)


def test_a_setting_that_is_not_recorded_is_the_default(runs, tmp_path):
    first = runs["first"]
    older = copy_of(first, tmp_path / "older", settings={"seed": 5})
    settings = Run(older.path).settings
    del settings["recipe"]["optimizer"], settings["data"]["detail"], settings["model"]["config"]["init"]
    write_toml(older.path / "run.toml", settings)
    assert differences([older.path, first]).index.tolist() == ["recipe.optimizer", "seed"]
    limited = copy_of(first, tmp_path / "limited", settings={"data.limit": 5, "recipe.optimizer": "scratch_sgd"})
    changed = differences([limited, first, older.path])
    assert changed.T.to_dict("list") == {
        "recipe.optimizer": ["scratch_sgd", "muon", "sgd"], "data.limit": [5, None, None], "seed": [0, 0, 5],
    }  # fmt: skip


def test_a_run_of_the_first_version_is_compared(runs):
    changed = differences([GOLDEN, runs["first"]]).loc[["model.config.depths", "model.config.shortcut"]]
    assert changed.values.tolist() == [[[1], [1, 1]], ["B", "A"]]
    table = compare([GOLDEN, runs["first"]])
    assert table[["run", "top1", "parameters"]].values.tolist()[0] == ["run", 0.1388888888888889, 398]


OTHER = "0" * 64


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"data.source": "/data/photos", "data.fingerprint": OTHER}, "different data (digits, photos)"),
        ({"data.split_seed": 3, "data.fingerprint": OTHER}, "different images of digits (data.split_seed)"),
        ({"data.fingerprint": OTHER}, "different images of digits (their content has changed)"),
    ],
)
def test_figures_of_other_images_are_cautioned_against(runs, tmp_path, drawn, settings, fact):
    other = copy_of(runs["first"], tmp_path / "other", settings=settings)
    with pytest.warns(UserWarning) as caught:
        compare([runs["first"], other])
    (warning,) = [str(warning.message) for warning in caught]
    assert fact in warning
    figure, _ = drawn([runs["first"], other])
    assert f"Caution: {warning}" in [text.replace("\n", " ") for text in words_of(figure)]


def test_fewer_training_images_or_another_place_are_no_other_figures(runs, tmp_path, drawn):
    settings = {"data.limit": 100, "data.counts.train": 100, "data.fingerprint": OTHER}
    limited = copy_of(runs["first"], tmp_path / "limited", settings=settings)
    moved = copy_of(runs["first"], tmp_path / "moved", settings={"data.source": "/elsewhere/digits"})
    assert len(compare([runs["first"], limited, moved])) == 3  # a warning would be an error
    assert not any("Caution" in text for text in words_of(drawn([runs["first"], limited, moved])[0]))


def test_the_picture_overlays_the_histories(runs, drawn):
    figure, pixels = drawn([runs["first"], runs["second"], runs["unvalidated"]])
    for axes, title, training, validation in zip(
        figure.axes, ("Loss", "Top-1 accuracy"), ("train_loss", "train_top1"), ("val_loss", "val_top1"), strict=True
    ):
        assert axes.get_title(loc="left") == title and axes.get_xlabel() == "epoch"
        lines = curves(axes)
        assert [solid for _, solid, _ in lines] == [False, True] * 3
        assert lines[0][0] == lines[1][0] != lines[2][0] == lines[3][0] != lines[4][0] != lines[0][0]
        for number, name in enumerate(("first", "second", "unvalidated")):
            history = runs[name].history
            for column, (_, _, points) in zip((training, validation), lines[2 * number :], strict=False):
                assert points == history[["epoch", column]].dropna().values.tolist()
        assert lines[5][2] == []
        assert axes.get_xlim()[0] > 0 and all(tick == round(tick) for tick in axes.get_xticks())
    assert figure.axes[1].get_ylim()[1] <= 1
    assert [handle.get_linestyle() for handle in figure.legends[0].legend_handles] == ["-", "-", "--"]
    assert words_of(figure)[1:4] == ["first", "second", "unvalidated"]
    assert words_of(figure)[5:] == ["validation", "training"]
    assert (pixels[0] == 255).all() and (pixels < 100).any()


def test_time_is_told_in_a_unit_that_is_read_easily(runs, tmp_path, drawn):
    for number, (seconds, label, last) in enumerate(
        [(10.0, "seconds of training", 40.0), (60.0, "minutes of training", 4.0), (7200.0, "hours of training", 8.0)]
    ):
        run = copy_of(runs["first"], tmp_path / str(number), rows=made_rows(4, seconds=seconds))
        axes = drawn([run], x="minutes")[0].axes[0]
        assert axes.get_xlabel() == label and axes.get_xlim()[0] == 0
        assert curves(axes)[1][2] == [[last * epoch / 4, 1 / epoch] for epoch in range(1, 5)]
    with pytest.raises(UserError, match=r"epochs.*epoch, minutes"):
        draw_comparison([GOLDEN], tmp_path / "never.png", x="epochs")
    assert not (tmp_path / "never.png").exists()


def test_a_run_without_an_epoch_is_named_and_left_out(runs, tmp_path, drawn):
    begun = unfinished(runs["first"], tmp_path / "_$begun$", 0)
    stopped = unfinished(runs["first"], tmp_path / "stopped", 1)
    figure, _ = drawn([begun, stopped])
    assert words_of(figure)[:2] == ["Not drawn, since no epoch is finished: _$begun$.", "stopped"]
    assert len(figure.axes[0].get_lines()) == 2
    figure, pixels = drawn([begun])
    assert words_of(figure) == ["Not drawn, since no epoch is finished: _$begun$."]
    assert figure.axes == [] and (pixels < 100).any()


def test_a_line_of_one_epoch_is_a_point(runs, drawn):
    figure, _ = drawn([runs["second"]])
    assert [line.get_marker() for line in figure.axes[0].get_lines()] == ["o", "o"]
    assert [tick for tick in figure.axes[0].get_xticks() if 0.6 <= tick <= 1.4] == [1]


def test_losses_that_span_a_lot_get_a_logarithmic_scale(runs, tmp_path, drawn):
    wide = copy_of(runs["first"], tmp_path / "wide", rows=made_rows(30, loss=5.0))
    axes, accuracy = drawn([wide])[0].axes
    assert axes.get_yscale() == "log" and axes.get_title(loc="left") == "Loss, logarithmic scale"
    labels = [label.get_text() for label in axes.get_yticklabels(which="both")]
    assert {"0.2", "0.5", "1", "2", "5"} <= set(labels) and not any("$" in label for label in labels)
    assert accuracy.get_ylim()[1] == 1
    assert [label.get_text() for label in accuracy.get_yticklabels()][-1] == "100%"


def test_twenty_runs_with_long_names_stay_apart_and_clear_of_the_curves(runs, tmp_path, drawn):
    names = [f"$\\frac{{$ fashion_mnist-wide_resnet50_2-{number}" for number in range(19)]
    many = [
        copy_of(runs["first"], tmp_path / name, rows=made_rows(5 + number, loss=1 + number / 9))
        for number, name in enumerate(names)
    ]
    longest = "".join(f"run-{number}-" for number in range(30))
    many.append(copy_of(runs["first"], tmp_path / longest, rows=made_rows(9)))
    figure, _ = drawn(many)
    below, above = figure.legends
    looks = {(to_hex(handle.get_color()), handle.get_marker()) for handle in below.legend_handles}
    assert len(looks) == 20
    shown = [text.get_text() for text in below.get_texts()]
    assert shown[:-1] == names and shown[-1] == f"{longest[:49]}…{longest[-50:]}"
    figure.set_dpi(160)  # as it was saved: the width of text depends on it
    figure.draw_without_rendering()
    page = figure.bbox
    panels = [axes.get_tightbbox() for axes in figure.axes]
    for box in (below.get_window_extent(), above.get_window_extent()):
        assert not any(box.overlaps(panel) for panel in panels)
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    assert not panels[0].overlaps(panels[1])
    assert min(panel.height for panel in panels) > 0.25 * page.height


def test_a_table_of_figures_survives_a_csv_file(runs, tmp_path):
    table = compare([runs["first"], unfinished(runs["first"], tmp_path / "stopped", 1)])
    table.to_csv(tmp_path / "table.csv", index=False)
    read = pd.read_csv(tmp_path / "table.csv")
    assert read.columns.tolist() == table.columns.tolist()
    assert read["top1"][0] == runs["first"].summary["top1"] and math.isnan(read["top1"][1])
