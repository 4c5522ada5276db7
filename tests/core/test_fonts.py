import re
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from resnetlab.core.fonts import covering_fonts, one_font, save_figure

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
STIX = str(FONTS / "STIXGeneral.ttf")  # has the Japanese character no, which DejaVu Sans lacks
OTHERS = [str(FONTS / name) for name in ("cmr10.ttf", "LastResortHE-Regular.ttf")]
NAMES = ["の", "猫 犬", "ไทย & <b>", "plain"]


@pytest.fixture
def figure():
    """A picture with names along both axes, in a title of two lines and in the legend."""
    made = Figure(figsize=(4, 3), layout="constrained")
    axes = made.subplots()
    axes.plot([0, 1], label=NAMES[1])
    axes.set_xticks(range(4), NAMES, rotation=90)
    axes.set_yticks(range(4), NAMES)
    axes.set_title(f"title\n{NAMES[0]}")
    axes.legend()
    return made


def shown(figure):
    """The texts of a figure that was saved."""
    texts = {text.get_text() for axes in figure.axes for text in axes.findobj(Text)}
    return {text for text in texts if text}


def test_the_fewest_fonts_that_have_the_characters_are_chosen(tmp_path):
    (damaged := tmp_path / "damaged.ttf").write_bytes(b"no font")
    candidates = [str(damaged), *OTHERS, STIX]
    assert covering_fonts({"の"}, candidates) == [STIX]
    assert covering_fonts({"の", "猫"}, candidates) == [STIX]
    assert covering_fonts({"猫"}, candidates) == covering_fonts(set(), candidates) == []


def test_a_png_takes_another_font_for_what_its_own_lacks(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = save_figure(figure, "png", fonts=[*OTHERS, STIX])
    assert content.startswith(b"\x89PNG")
    assert {"の", "[1]", "[2] & <b>", "plain", "title\nの"} <= shown(figure)
    families = {name for text in figure.axes[0].get_xticklabels() for name in text.get_fontfamily()}
    assert families == {"DejaVu Sans", "STIXGeneral"}


def test_what_no_font_has_is_numbered_in_a_png_and_a_note_says_why(figure):
    save_figure(figure, "png", fonts=[])
    assert {"[1]", "[2]", "[3] & <b>", "plain", "title\n[1]"} <= shown(figure)
    assert not any(set(text) & set("の猫犬ไทย") for text in shown(figure))
    assert "font" in figure.get_supxlabel() and "[1] to [3]" in figure.get_supxlabel()


def test_a_figure_without_foreign_characters_is_saved_as_it_is(tmp_path):
    made = Figure(figsize=(2, 1))
    made.text(0.5, 0.5, "Ünï кошка ≤ …")
    content = save_figure(made, "png", fonts=[])
    made.savefig(tmp_path / "plain.png", dpi=made.dpi)
    (tmp_path / "ours.png").write_bytes(content)
    ours, plain = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "plain"))
    assert np.array_equal(ours, plain)


def test_an_svg_keeps_every_text_and_leaves_room_for_it(figure):
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = save_figure(figure, "svg", fonts=[]).decode()
    texts = re.findall(r">([^<>]+)</(?:text|tspan)>", svg)
    assert {"の", "猫 犬", "ไทย &amp; &lt;b&gt;", "plain", "title"} <= set(texts)
    assert "\u200b" not in svg and "—" not in svg
    drawn = [text for text in figure.axes[0].get_yticklabels() if "—" in text.get_text()]
    assert drawn and drawn[-1].get_window_extent().width >= 2 * drawn[-1].get_fontsize()


def test_a_single_font_is_chosen_for_a_line_and_what_it_lacks_becomes_its_code():
    assert one_font("Ünï кошка", [STIX]) == ("Ünï кошка", None)
    assert one_font("no の", [*OTHERS, STIX]) == ("no の", STIX)
    assert one_font("cat 猫", [*OTHERS, STIX]) == ("cat [U+732B]", None)
    assert one_font("の猫", [STIX]) == ("の[U+732B]", STIX)
