from __future__ import annotations

import pytest
from tests.facts import refuses

from resnetlab.models.catalog import CATALOG
from resnetlab.models.scaling import ALPHA, BETA, GAMMA, PUBLISHED, compound_scale, scaling_table


def test_phi_of_zero_changes_nothing():
    for name in ("resnet50", "resnet20", "wrn16_4"):
        entry = CATALOG[name]
        assert compound_scale(entry.config, 0, image_size=entry.image_size) == (entry.config, entry.image_size)


def test_depth_width_and_resolution_grow_together():
    config, size = compound_scale(CATALOG["resnet18"].config, 2, image_size=224)
    assert config.depths == (3, 3, 3, 3)  # 2 * 1.44, rounded up
    assert config.widths == (80, 152, 312, 616)  # 1.21 times, to multiples of 8
    assert size == 296  # 224 * 1.3225
    wide, _ = compound_scale(CATALOG["wrn16_4"].config, 1, image_size=32)
    assert wide.stem_width == 16
    small, size = compound_scale(CATALOG["resnet18"].config, -1, image_size=224)
    assert (small.depths, size) == ((2, 2, 2, 2), 195)


def test_a_dimension_can_be_scaled_alone():
    config, size = compound_scale(CATALOG["resnet20"].config, 1, image_size=32, alpha=2, beta=1, gamma=1)
    assert (config.depths, config.widths, size) == ((6, 6, 6), (16, 32, 64), 32)


def test_cost_grows_about_as_the_ratios_say():
    table = scaling_table(CATALOG["resnet50"].config, image_size=224).set_index("phi")
    assert table.loc[0, "times_macs"] == 1
    ratio = ALPHA * BETA**2 * GAMMA**2
    assert ratio == pytest.approx(2, abs=0.1)
    assert table.loc[7, "times_macs"] == pytest.approx(ratio**7, rel=0.2)
    assert table.loc[4, "published"] == PUBLISHED[4] == (1.8, 1.4, 380)
    assert table.loc[4, "depth"] == pytest.approx(2.07, abs=0.01)  # the released B4 is no exact power


def test_ratios_are_checked():
    with refuses("phi", "nan"):
        compound_scale(CATALOG["resnet18"].config, float("nan"), image_size=224)
    with refuses("ResNetConfig", "'resnet18'"):
        compound_scale("resnet18", 1, image_size=224)  # type: ignore[arg-type]
    with refuses("beta", "above 0 and at most 10", "got 0"):
        compound_scale(CATALOG["resnet18"].config, 1, image_size=224, beta=0)
