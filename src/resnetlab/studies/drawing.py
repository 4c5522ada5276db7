"""What the studies' pictures have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from resnetlab.training.pictures import TRAINING, VALIDATION

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"color": TRAINING, "marker": "s", "linestyle": "--"},
    "residual": {"color": VALIDATION, "marker": "o", "linestyle": "-"},
}
"""How plain and residual networks look in every picture."""


def with_errors(axes: Axes, table: pd.DataFrame, x: str, y: str, *, label: str, **look: Any) -> None:
    """Draws the column `y` over `x` as points joined by a line, each with its deviation, the column `y`_sd."""
    deviations = np.nan_to_num(table[f"{y}_sd"].to_numpy(dtype=float))  # of one seed there is none
    axes.errorbar(
        table[x].to_numpy(),
        table[y].to_numpy(),
        deviations,
        label=label,
        capsize=3,
        linewidth=1.6,
        markersize=5,
        **look,
    )
