"""Broken and hostile inputs: each ends in one message that names the file and the field, and in exit code 2.

Elsewhere: modules in the working directory (test_working_directory), foreign folders and links (data/test_pack),
unreadable images (data/test_faults), files of weights (weights/test_file, weights/test_fuzz).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.conftest import TINY, unprivileged
from tests.facts import refuses
from tests.training.stepping import before_step, fail

import resnetlab
from resnetlab.core.errors import outside_cause
from resnetlab.core.files import make_folder, read_toml, write_toml
from resnetlab.core.runs import TIMING_COLUMNS, Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.reader import PixelBudget, UnreadableImageError, decode_image, map_files
from resnetlab.data.storage.store import ImageData
from resnetlab.training.fit import fit, resume
from resnetlab.weights.tensors import read_tensors, write_tensors

Cli = Callable[..., tuple[int, str, str]]
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 512, "precision": "float32", "quiet": True}
ESCAPE, OVERRIDE = "\x1b[31m", "\u202e"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Run:
    return fit(TINY, digits, out=tmp_path_factory.mktemp("whole") / "run", **SETTINGS)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """An unfinished run, in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(ConnectionError), before_step(5, fail):
        fit(TINY, digits, out=folder, **SETTINGS)
    return folder


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Path:
    return shutil.copytree(whole.path, tmp_path / "run")


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "unfinished")


def change(folder: Path, key: str, value: Any) -> None:
    """Sets one value in run.toml, by its dotted name."""
    settings = read_toml(folder / "run.toml")
    *tables, name = key.split(".")
    table = settings
    for inner in tables:
        table = table[inner]
    table[name] = value
    write_toml(folder / "run.toml", settings)


def describe(path: Path, **changes: Any) -> None:
    """Changes values in the header of a file of weights, with a digest that matches."""
    tensors, description = read_tensors(path)
    write_tensors(path, tensors, {**description, **changes})


def assert_equal(ours: Run, theirs: Run) -> None:
    first, second = (read_tensors(run.weights)[0] for run in (ours, theirs))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    histories = [run.history.drop(columns=list(TIMING_COLUMNS)) for run in (ours, theirs)]
    assert histories[0].equals(histories[1])
    assert ours.summary == theirs.summary


SETTINGS_OF_RUN = [
    ("model", 3),
    ("model.config", [1]),
    ("data.source", ["digits"]),
    ("recipe", "quick"),
    ("data.class_names", 10),
    ("data.class_names", ["a\nb", "c"]),
    ("machine.threads", 10**6),
    ("machine.memory_format", 3),
    ("model.config.depths", [10**9] * 3),
    ("model.config.widths", [10**6, 10**6]),
    ("recipe.epochs", 10**18),
    ("preprocessing.image_size", 60000),
    ("seed", "0"),
    ("extensions", [{"start": 1}]),
    ("model.name", f"net{ESCAPE}"),
]


@pytest.mark.parametrize(("key", "value"), SETTINGS_OF_RUN)
def test_wrong_settings_are_named_by_every_verb(cli: Cli, run: Path, key: str, value: Any):
    change(run, key, value)
    for words in (("evaluate", run), ("predict", run, "x.png"), ("summary", run), ("train", "--resume", run),
                  ("compare", run), ("export", run, "--to", "torchvision")):  # fmt: skip
        code, out, err = cli(*words)
        assert (code, "run.toml" in err, key.split(".")[-1] in err) == (2, True, True), f"{words}: {err}"
        assert "Traceback" not in err and len(err) < 800
        assert ESCAPE not in out + err


@pytest.mark.parametrize("content", ["", "schema = ", "x = " + "[" * 100_000, "schema = " + "9" * 10_000, "a\0"])
def test_settings_that_do_not_parse_are_named(cli: Cli, run: Path, content: str):
    (run / "run.toml").write_text(content)
    code, _, err = cli("evaluate", run)
    assert (code, "run.toml" in err, "internal" in err) == (2, True, False), err


def test_other_images_are_refused_before_they_are_decoded(cli: Cli, tmp_path: Path, image_folder: Path):
    images, widths = load_data(image_folder, image_size=8), {"widths": (4, 4, 4)}
    run = fit("resnet20", images, out=tmp_path / "run", overrides=widths, **{**SETTINGS, "batch_size": 8}).path
    others = tmp_path / "others"
    for name in ("blue", "red"):
        (others / name).mkdir(parents=True)
        (others / name / "1.png").write_bytes(b"not an image")
    for source in ("/etc", others):
        change(run, "data.source", str(source))
        code, _, err = cli("evaluate", run)
        assert (code, str(source) in err, "not those of the run" in err) == (2, True, True), err
        assert "1.png" not in err


@pytest.mark.slow
def test_a_network_that_a_file_describes_is_compared_with_memory_before_it_is_built(unfinished: Path):
    for checkpoint in (unfinished / "checkpoints").iterdir():
        checkpoint.unlink()
    (unfinished / "history.csv").unlink()
    change(unfinished, "model.config.depths", [2000, 2000])
    change(unfinished, "model.config.widths", [2**16, 2**16])
    with refuses("memory", str(unfinished), "65536"):
        resume(unfinished)


def _shorten(text: str) -> str:
    return text[: len(text) - 30]


HISTORIES = {
    "truncated": _shorten,
    "without its first row": lambda text: "\n".join([text.splitlines()[0], *text.splitlines()[2:], ""]),
    "a digit changed": lambda text: text.replace("0.", "0.9", 1),
    "a word for a number": lambda text: text.replace("0.", "zero", 1),
    "empty": lambda text: "",
    "absent": None,
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("kind", ["run", "unfinished"])
def test_a_damaged_history_is_restored(
    request: pytest.FixtureRequest, kind: str, name: str, whole: Run, capfd: pytest.CaptureFixture[str]
):
    folder = request.getfixturevalue(kind)
    path, damage = folder / "history.csv", HISTORIES[name]
    before = Run(folder).history
    intact = path.read_text()
    path.unlink() if damage is None else path.write_text(damage(intact))
    assert Run(folder).history.equals(before)
    assert "history.csv" in capfd.readouterr().err or kind == "unfinished"
    resumed = resume(folder, quiet=True)
    assert_equal(resumed, whole)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["epoch", "1", "2"]
    assert kind == "unfinished" or path.read_text() == intact


def test_without_weights_a_damaged_history_is_named(unfinished: Path, cli: Cli):
    for checkpoint in (unfinished / "checkpoints").iterdir():
        checkpoint.unlink()
    (unfinished / "history.csv").write_text((unfinished / "history.csv").read_text().replace("0.", "zero", 1))
    code, _, err = cli("compare", unfinished)
    assert (code, "history.csv" in err) == (2, True), err
    with refuses("history.csv", "line 2", "lr", "zero"):
        Run(unfinished).history_rows()


JSONS = {
    "empty": "", "null": "null", "a list": "[]", "nested": '{"a":' * 100_000, "a number": "1e999",
    "wrong types": '{"split": 3, "n": "x", "python": [], "packages": 5, "schema": 1, "name": 7, "shards": []}',
    "a lone surrogate": '{"split": "\\ud800", "n": 1, "top1": 1, "loss": 1, "python": "\\ud800"}',
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("file", ["environment.json", "evaluation/summary.json"])
def test_wrong_json_of_a_run_is_named(cli: Cli, run: Path, file: str, name: str):
    (run / file).write_text(JSONS[name])
    code, _, err = cli("evaluate", run, "--page-only", "--no-explore")
    assert (code, Path(file).name in err, "internal" in err) == (2, True, False), err


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draws = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{number}.png")
    resnetlab.pack(root / "photos", root / "pack", image_size=8, workers=1)
    return root / "pack"


@pytest.mark.parametrize("name", JSONS)
def test_a_wrong_pack_is_named(packed: Path, tmp_path: Path, name: str):
    folder = shutil.copytree(packed, tmp_path / "pack")
    (folder / "pack.json").write_text(JSONS[name])
    with refuses("pack.json"):
        load_data(folder)


def test_an_image_larger_than_its_shard_is_refused(packed: Path, tmp_path: Path):
    import hashlib

    folder = shutil.copytree(packed, tmp_path / "pack")
    table = pd.read_parquet(folder / "images.parquet")
    table.loc[0, "width"] = 570_000_000
    table.to_parquet(folder / "images.parquet")
    facts = json.loads((folder / "pack.json").read_text())
    facts["table"] = hashlib.sha256((folder / "images.parquet").read_bytes()).hexdigest()
    (folder / "pack.json").write_text(json.dumps(facts))
    with refuses("images.parquet", "outside its shard"):
        load_data(folder)


def test_a_shard_that_is_truncated_while_it_is_read_is_named(packed: Path, tmp_path: Path):
    data = load_data(shutil.copytree(packed, tmp_path / "pack"))
    data.squares("train")
    shard = next((tmp_path / "pack" / "shards").glob("train-*.bin"))
    os.truncate(shard, 100)
    with refuses(shard.name, "100 bytes"):
        data.squares("train")


DIFFERENCES = [
    ("seed", 7),
    ("recipe.batch_size", 256),
    ("recipe.lr", 0.5),
    ("recipe.optimizer", "adamw"),
    ("model.config.activation", "gelu"),
    ("model.config.drop_path", 0.25),
    ("preprocessing.mean", [0.25]),
    ("preprocessing.std", [0.75]),
    ("machine.precision", "bfloat16"),
    ("created", "2020-02-02T00:00:00+00:00"),
]


@pytest.mark.parametrize(("key", "value"), DIFFERENCES)
def test_a_checkpoint_of_other_settings_is_refused_and_the_difference_shown(unfinished: Path, key: str, value: Any):
    change(unfinished, key, value)
    shown = value[0] if isinstance(value, list) else value
    with refuses(key, str(shown), "checkpoints"):
        resume(unfinished, quiet=True)


def test_a_checkpoint_of_another_run_is_refused(unfinished: Path, tmp_path: Path, digits: ImageData):
    other = tmp_path / "other"
    with pytest.raises(ConnectionError), before_step(5, fail):
        fit(TINY, digits, out=other, **{**SETTINGS, "seed": 1})
    for checkpoint in (unfinished / "checkpoints").iterdir():
        checkpoint.unlink()
    for checkpoint in (other / "checkpoints").iterdir():
        shutil.copy(checkpoint, unfinished / "checkpoints")
    with refuses("seed", "1", "0"):
        resume(unfinished, quiet=True)


CONFIG = TINY.to_dict()
HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"class_names": ["a", "b", "c"]}, "3 class names"),
    ({"class_names": list(range(10))}, "class_names"),
    ({"class_names": [f"{ESCAPE}{n}" for n in range(10)]}, "control characters"),
    ({"class_names": [f"{OVERRIDE}{n}" for n in range(10)]}, "control characters"),
    ({"class_names": [f"\0{n}\n" for n in range(10)]}, "control characters"),
    ({"class_names": ["a"] * 10}, "twice"),
    ({"class_names": "abcdefghij"}, "class_names"),
    ({"config": {**CONFIG, "depths": [10**9, 1]}}, "depths"),
    ({"config": {**CONFIG, "num_classes": 10**9}}, "num_classes"),
    ({"config": 7}, "damaged"),
    ({"config": {"library": [], "name": "x"}}, "library"),
    ({"config": {"library": "timm", "name": 3}}, "name"),
    ({"temperature": -1}, "temperature"),
]


@pytest.mark.parametrize(("changes", "words"), HEADERS)
def test_a_header_that_contradicts_itself_is_refused(run: Path, changes: dict[str, Any], words: str):
    describe(run / "model.safetensors", **changes)
    with refuses("model.safetensors", words) as message:
        resnetlab.load(run)
    assert ESCAPE not in message() and OVERRIDE not in message()


def test_a_preprocessing_for_other_channels_is_refused(run: Path):
    _, description = read_tensors(run / "model.safetensors")
    color = {**description["preprocessing"], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    describe(run / "model.safetensors", preprocessing=color)
    with refuses("3 channels", "1"):
        resnetlab.load(run)
    describe(run / "model.safetensors", preprocessing={**description["preprocessing"], "image_size": 60000})
    with refuses("image_size", "8192"):
        resnetlab.load(run)


def test_five_million_class_names_are_refused(run: Path):
    describe(run / "model.safetensors", class_names=[""] * 1_000_001)
    with refuses("1,000,001"):
        resnetlab.load(run)


def test_a_large_file_that_is_no_image_is_not_read(tmp_path: Path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    Image.new("L", (8, 8)).save(tmp_path / "head.jpg")
    (tmp_path / "tail.jpg").write_bytes((tmp_path / "head.jpg").read_bytes())
    for name, words in (("x.jpg", "not an image"), ("tail.jpg", "8x8")):
        os.truncate(tmp_path / name, 3 * 2**30)
        tracemalloc.start()
        with pytest.raises(UnreadableImageError, match=words):
            decode_image(tmp_path / name, 3)
        assert tracemalloc.get_traced_memory()[1] < 10**7
        tracemalloc.stop()


def test_threads_share_a_budget_of_pixels():
    budget, inside, most = PixelBudget(free=10, most=lambda: 100), [], []

    def decode(pixels: int) -> None:
        with budget.spent(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            inside.remove(pixels)

    threads = [threading.Thread(target=decode, args=(pixels,)) for pixels in (90, 90, 60, 40, 200, 1, 1) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(most) == len(threads)
    assert max(total for total in most if total < 200) <= 110
    with budget.spent(90):
        blocked = threading.Thread(target=decode, args=(90,))
        blocked.start()
        blocked.join(timeout=0.05)
        assert blocked.is_alive()
    blocked.join(timeout=30)
    assert not blocked.is_alive()


def test_a_table_of_more_rows_than_it_can_name_is_refused(tmp_path: Path):
    table = pd.DataFrame({"path": pd.Categorical(["a.png"] * 1_100_000), "label": pd.Categorical(["x"] * 1_100_000)})
    table.to_parquet(tmp_path / "labels.parquet")
    assert (tmp_path / "labels.parquet").stat().st_size < 100_000
    with refuses("labels.parquet", "1,100,000 rows"):
        load_data(tmp_path / "labels.parquet")
    long = pd.DataFrame({"path": pd.Categorical(["a" * 10_000] * 90_000), "label": "x"})
    long.to_parquet(tmp_path / "long.parquet")
    with refuses("long.parquet", "bytes"):
        load_data(tmp_path / "long.parquet")


@pytest.mark.parametrize("label", [f"{ESCAPE}red", "a\0b", "a\nb", f"a{OVERRIDE}b"])
def test_labels_with_control_characters_are_refused(cli: Cli, tmp_path: Path, label: str):
    table = pd.DataFrame({"path": ["1.png", "2.png"], "label": [label, "b"]})
    table.to_parquet(tmp_path / "labels.parquet")
    code, out, err = cli("train", tmp_path / "labels.parquet")
    assert (code, "row 1" in err, "control characters" in err) == (2, True, True), err
    assert not {"\x1b", "\0", OVERRIDE} & set(out + err)
    images = (np.zeros((4, 8, 8), dtype=np.uint8), [label, "b", label, "b"])
    with refuses("control characters"):
        load_data(images)


@pytest.mark.slow
def test_a_name_of_a_run_folder_never_controls_the_terminal(
    cli: Cli, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # for the picture of the comparison
    folder = shutil.copytree(whole.path, tmp_path / f"run{ESCAPE}{OVERRIDE}")
    for words in (("evaluate", folder, "--no-explore"), ("train", "--resume", folder), ("compare", folder, whole.path)):
        code, out, err = cli(*words)
        assert code == 0, err
        assert not {"\x1b", OVERRIDE} & set(out + err)
    page = (folder / "report.html").read_text()
    assert OVERRIDE not in page and "\x1b" not in page


def test_cells_that_a_spreadsheet_would_calculate_are_text(cli: Cli, whole: Run, tmp_path: Path):
    names = ["=cmd|' /C calc'!A0.png", "+1+1.png", "@SUM(1).png", "-2.png", "plain.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.new("L", (8, 8)).save(tmp_path / "in" / name.replace("/", "_"))
    here = Path.cwd()
    try:
        os.chdir(tmp_path / "in")
        code, _, err = cli("predict", whole.path, *(f"./{name.replace('/', '_')}" for name in names),
                           "--out", tmp_path / "out.csv")  # fmt: skip
    finally:
        os.chdir(here)
    assert code == 0, err
    cells = pd.read_csv(tmp_path / "out.csv")["path"].tolist()
    assert len(cells) == 5 and not any(cell[0] in "=+-@" for cell in cells)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Lets the process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    opened = []
    try:
        with suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_are_not_a_damaged_image(image_folder: Path, run: Path):
    image = next(image_folder.rglob("*.png"))
    with no_more_files(), refuses(image.name, "Too many open files", "ulimit") as message:
        decode_image(image, 3)
    assert "damaged" not in message()
    with no_more_files(), refuses("model.safetensors", "Too many open files") as message:
        resnetlab.load(run / "model.safetensors")
    assert "damaged" not in message()
    with no_more_files(), refuses("Too many open files"):
        load_data(image_folder, skip_unreadable=True)


def test_missing_permission_is_named_and_never_skipped(image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    image = next(image_folder.rglob("*.png"))
    image.chmod(0)
    monkeypatch.chdir(image.parent)  # an ordinary user cannot enter the folders above
    for read in (decode_image, lambda path, _: list(map_files(lambda each: decode_image(each, 3), [path]))):
        with unprivileged(image.parent), refuses(image.name, "Permission denied") as message:
            read(Path(image.name), 3)
        assert not any(word in message() for word in ("damaged", "emove", "anew"))


def test_too_little_memory_is_named():
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "x"),
    ):
        found = outside_cause(error, "x.png")
        assert found is not None and "memory" in str(found)
        assert not isinstance(found, UnreadableImageError)
    assert outside_cause(OSError("image file is truncated"), "x.png") is None
    assert outside_cause(FileNotFoundError(errno.ENOENT, "x"), "x.png") is None


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Makes every file that grows beyond a size an error, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_last_checkpoint_and_how_to_continue(tmp_path: Path, digits: ImageData, whole: Run):
    folder = tmp_path / "run"

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(training: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with before_step(5, fill), refuses("no space", "step-00000003", f"--resume {folder}"):
            fit(TINY, digits, out=folder, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(folder.rglob("*.part"))
    assert_equal(resume(folder, quiet=True), whole)


def test_a_full_disk_leaves_the_older_evaluation_whole(run: Path, digits: ImageData):
    before = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    with small_files(6000), pytest.raises(OSError, match="large"):
        resnetlab.evaluate(run, explore=False)
    assert {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()} == before


def test_tables_of_two_evaluations_are_refused(run: Path, tmp_path: Path, digits: ImageData, cli: Cli):
    other = fit(TINY, digits, out=tmp_path / "other", **{**SETTINGS, "epochs": 1, "seed": 3}).path
    shutil.copy(other / "evaluation" / "per_image.parquet", run / "evaluation")
    code, _, err = cli("evaluate", run, "--page-only", "--no-explore")
    assert (code, "per_image.parquet" in err, "resnetlab evaluate" in err) == (2, True, True), err
    with refuses("per_image.parquet", "different evaluations"):
        resnetlab.disagreements([run, other])
    code, _, err = cli("predict", run, 21, "--similar", 2)
    assert (code, "per_image.parquet" in err) == (2, True), err


def test_two_data_sets_of_one_name_keep_their_evaluations(run: Path, tmp_path: Path):
    found = []
    for place in ("first", "second"):
        for name in "0123456789":
            (tmp_path / place / "photos" / name).mkdir(parents=True)
            shade = 10 if place == "first" else 200
            Image.new("L", (8, 8), shade).save(tmp_path / place / "photos" / name / "1.png")
        found.append(resnetlab.evaluate(run, tmp_path / place / "photos", explore=False))
    again = resnetlab.evaluate(run, tmp_path / "first" / "photos", explore=False)
    assert [evaluation.folder for evaluation in found] == [
        run / "evaluation" / "photos",
        run / "evaluation" / "photos-2",
    ]
    assert again.folder == found[0].folder
    assert again.summary == found[0].summary != found[1].summary


def test_leftover_temporary_files_are_removed_by_the_next_owner(unfinished: Path, whole: Run):
    from resnetlab.core.files import atomic

    folders = (unfinished, unfinished / "checkpoints")
    left = [folder / ".history.csv.abcd1234.part" for folder in folders]
    kept = [unfinished / ".notes.part", unfinished / "history.csv.part"]
    for path in (*left, *kept):
        path.write_text("x")
    with atomic(unfinished / "report.html") as writing:
        writing.write_text("page")
        run = resume(unfinished, quiet=True)
        assert writing.exists()
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)
    assert (unfinished / "report.html").read_text() == "page"
    assert_equal(run, whole)


@pytest.mark.parametrize("out", ["/proc/x/y", "{folder}/" + "x" * 300, "{folder}/file/x"])
def test_a_path_that_cannot_be_used_is_named(cli: Cli, whole: Run, tmp_path: Path, out: str):
    (tmp_path / "file").touch()
    place = out.format(folder=tmp_path)
    for words in (("train", "digits"), ("pack", tmp_path), ("study", "responses", "digits"), ("export", whole.path),
                  ("export", whole.path, "--to", "html")):  # fmt: skip
        code, _, err = cli(*words, "--out", place)
        assert (code, "internal" in err) == (2, False), f"{words}: {err}"


def test_a_folder_of_any_depth_is_made(tmp_path: Path):
    made = make_folder(tmp_path / "/".join(["d"] * 1500))
    assert len(made) == 1500
    for folder in made:
        folder.rmdir()


def test_a_label_as_long_as_a_book_is_refused(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("path,label\n1.png," + "y" * 1001 + "\n")
    with refuses("labels.csv", "line 2", "1,000", "1,001"):
        load_data(tmp_path / "labels.csv")


def test_a_page_of_answers_that_are_not_numbers_is_written(cli: Cli, run: Path):
    _, description = read_tensors(run / "model.safetensors")
    describe(run / "model.safetensors", preprocessing={**description["preprocessing"], "std": [1e-300]})
    code, _, err = cli("evaluate", run, "--no-explore")
    assert code == 0, err
    assert not (run / "figures" / "reliability.png").exists()


def test_a_list_for_a_configuration_is_named(cli: Cli, run: Path):
    describe(run / "model.safetensors", config=[])
    code, _, err = cli("summary", run / "model.safetensors")
    assert (code, "model.safetensors" in err, "internal" in err) == (2, True, False), err
