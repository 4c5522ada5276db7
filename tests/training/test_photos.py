"""Photos in a folder, trained without an option: what is listed, chosen and printed before they are decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import TINY
from tests.facts import refuses

from resnetlab.core.runs import Run
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.load import list_data, load_data, pack
from resnetlab.data.storage.store import ImageData
from resnetlab.report.command import changed_settings, train_command
from resnetlab.training.fit import fit
from resnetlab.training.prepare import PHOTO_PLANS, automatic_recipe, photo_plan


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of 72 x 80 pixels of three classes, 12, 16 and 20 of them."""
    for label, count in enumerate((12, 16, 20)):
        folder = tmp_path / "photos" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 128, (72, 80, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def _listing(photos: Path, **options: object) -> PhotoListing:
    listing = list_data(photos, **options)  # type: ignore[arg-type]
    assert listing is not None
    return listing


def test_a_listing_knows_what_the_decoded_photos_show(photos: Path):
    listing, images = _listing(photos), load_data(photos)
    assert (listing.name, listing.class_names, listing.framing) == (images.name, images.class_names, images.framing)
    assert {name: len(files) for name, files in listing.splits.items()} == {
        name: len(split) for name, split in images.splits.items()
    }
    assert listing.images.fingerprint == images.fingerprint
    assert listing.at_size(24).images.fingerprint == load_data(photos, image_size=24).fingerprint
    assert listing.at_size(24) is listing.at_size(24)
    assert all(fact in str(listing) for fact in ("48 photos", "3 classes", "class 0 12", "class 2 20", "held out"))
    assert list_data("digits") is None


@pytest.mark.parametrize("count", [1, PHOTO_PLANS[0].photos, PHOTO_PLANS[0].photos + 1, PHOTO_PLANS[-1].photos])
def test_the_plan_is_the_first_row_for_so_many_photos(count: int):
    plan = photo_plan(count)
    assert plan is not None
    assert count <= plan.photos
    assert all(row.photos < count for row in PHOTO_PLANS[: PHOTO_PLANS.index(plan)])
    assert photo_plan(PHOTO_PLANS[-1].photos + 1) is None


def test_network_size_and_epochs_follow_from_the_number_of_photos(photos: Path):
    recipe, found = automatic_recipe("auto", "auto", _listing(photos))
    assert (recipe.name, recipe.epochs) == ("photos", PHOTO_PLANS[0].epochs)
    assert set(recipe.networks) == {PHOTO_PLANS[0].network}
    assert found.image_size == min(72, PHOTO_PLANS[0].image_size)


def test_what_the_user_sets_is_kept(photos: Path):
    listing = _listing(photos)
    recipe, found = automatic_recipe("auto", "auto", _listing(photos, image_size=70), epochs=3, lr=0.01)
    assert (recipe.name, recipe.epochs, recipe.lr, found.image_size) == ("photos", 3, 0.01, 70)
    for settings in ({"recipe": "quick"}, {"model": "resnet18"}, {"pretrained": "runs/other"}):
        recipe, found = automatic_recipe(**{"recipe": "auto", "model": "auto", "data": listing, **settings})
        assert (recipe.name, found) == ("quick", listing)


def test_small_images_and_other_data_keep_the_recipe_for_them(photos: Path):
    listing = _listing(photos, image_size=32)
    for data in (listing, load_data("digits"), load_data(photos)):
        assert automatic_recipe("auto", "auto", data)[0].name == "quick"


def test_a_pack_of_photos_is_trained_like_its_folder(photos: Path, tmp_path: Path):
    packed = pack(photos, tmp_path / "pack", image_size=70, workers=1)
    recipe, found = automatic_recipe("auto", "auto", packed)
    assert recipe == automatic_recipe("auto", "auto", _listing(photos, image_size=70))[0]
    assert (recipe.name, found) == ("photos", packed)
    larger = pack(photos, tmp_path / "larger", image_size=PHOTO_PLANS[0].image_size + 1, workers=1)
    assert automatic_recipe("auto", "auto", larger)[0].name == "quick"
    assert automatic_recipe("photos", "auto", larger)[0].epochs == PHOTO_PLANS[0].epochs


@pytest.mark.slow
def test_the_shell_lists_before_it_decodes_and_ends_with_the_next_command(
    cli: Callable[..., tuple[int, str, str]], photos: Path, tmp_path: Path
):
    out = tmp_path / "run"
    (photos / "class 1" / "broken.jpg").write_bytes(b"no image")
    code, _, err = cli("train", photos, "--epochs", 1, "--out", out)
    assert code == 2
    assert -1 < err.index("class 2 20") < err.index("recipe photos") < err.index("broken.jpg")
    assert not out.exists()
    code, _, err = cli("train", photos, "--epochs", 1, "--out", out, "--skip-unreadable")
    assert code == 0, err
    assert Run(out).settings["recipe"]["name"] == "photos"
    assert Run(out).settings["data"]["image_size"] == min(72, PHOTO_PLANS[0].image_size)
    assert train_command(Run(out).settings) == [
        ["resnetlab", "train", str(photos)], ["--epochs", "1"], ["--skip-unreadable"],
    ]  # fmt: skip
    assert {name for name, *_ in changed_settings(Run(out).settings)} == {"recipe.epochs", "data.skip_unreadable"}
    assert all(fact in err for fact in ("accuracy", "95 % interval", f"next        resnetlab predict {out}"))


def test_a_budget_chooses_epochs_and_is_recorded(digits: ImageData, tmp_path: Path):
    run = fit(TINY, digits, out=tmp_path / "run", budget=0.02, quiet=True)
    assert Run(run.path).settings["budget_minutes"] == 0.02
    assert 1 <= Run(run.path).settings["recipe"]["epochs"] == len(run.history_rows()) < 100
    with refuses("budget", "0"):
        fit(TINY, digits, out=tmp_path / "other", budget=0)
    with refuses("budget", "epochs"):
        fit(TINY, digits, out=tmp_path / "other", budget=1, epochs=2)
