import pytest
from matplotlib.figure import Figure

from resnetlab.core.pictures import logarithmic_ticks, make_logarithmic, plain_number


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.1, 0.2, ["0.1", "0.2"]),
        (0.5, 3, ["0.5", "1", "2"]),
        (0.02, 9, ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]),
        (1e-5, 1, ["10⁻⁵", "0.0001", "0.001", "0.01", "0.1", "1"]),
        (500, 2e7, ["1,000", "10,000", "100,000", "10⁶", "10⁷"]),
        (1e-12, 1, ["10⁻¹²", "10⁻¹⁰", "10⁻⁸", "10⁻⁶", "0.0001", "0.01", "1"]),
        (0.11, 0.19, ["0.12", "0.14", "0.16", "0.18"]),
    ],
)
def test_a_logarithmic_axis_has_numbers_that_people_read(low, high, labels):
    assert [plain_number(value) for value in logarithmic_ticks(low, high)] == labels


def test_every_range_has_two_to_ten_numbers_within_it():
    for low in (1e-9, 3e-4, 0.07, 0.97, 12, 4e6):
        for factor in (1.01, 1.5, 3, 30, 777, 1e5, 1e11, 1e30):
            ticks = logarithmic_ticks(low, low * factor)
            assert 2 <= len(ticks) <= 10, (low, factor)
            assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


@pytest.mark.parametrize("name", ["x", "y"])
def test_either_axis_becomes_logarithmic(name):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0.001, 1], [0.001, 1])
    make_logarithmic(axes, name)
    axis = getattr(axes, f"{name}axis")
    figure.draw_without_rendering()
    shown = [text.get_text() for text in axis.get_ticklabels()]
    assert {"0.001", "0.01", "0.1", "1"} <= set(shown) and not any("$" in text for text in shown)
    assert axis.get_transform().transform([10.0])[0] == pytest.approx(1)
