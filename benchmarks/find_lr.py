"""Whether the advice of the learning-rate finder is worth following, on three data sets.

For each data set and seed, a training with the recipe `quick` is compared with one at the rate that `find_lr` suggests:
first where the recipe has its own rate, then where it was changed to one that is far too low or too high.

- `NAME, recipe's rate`: accuracy with the suggestion minus accuracy with the recipe's rate, in points, the mean of all
  seeds. It must not be lower than two standard errors of the differences, and at most half a point, below 0.
- `NAME, a thirtieth` and `NAME, thirty times`: the same for a recipe whose rate was divided or multiplied by 30.

If the finder keeps the rate, both trainings are the same, and the difference is exactly 0 without training.

    python benchmarks/find_lr.py                  # about an hour on one core
    python benchmarks/find_lr.py --images 1000 --epochs 4 --data digits
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import resnetlab
from resnetlab.data.storage.store import ImageData
from resnetlab.training.recipes import resolve_recipe
from timing import judge, machine

DATA = {"digits": None, "fashion_mnist": None, "imagenette": 48}
"""The data sets, with the size of their images if it is not their own."""
CHANGES = {"recipe's rate": 1.0, "a thirtieth": 1 / 30, "thirty times": 30.0}


def main() -> int:
    """Runs the comparison and returns 0 if every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--data-root", type=Path, help="the folder of data sets")
    parser.add_argument("--images", type=int, default=3000, help="training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="resnet20")
    arguments = parser.parse_args()
    print(machine())
    passed = True
    for name in arguments.data:
        options = {"image_size": DATA[name], "data_root": arguments.data_root, "limit_held_out": 2000}
        data = resnetlab.load_data(name, limit=arguments.images, **options)
        for change, factor in CHANGES.items():
            differences = [_difference(data, factor, seed, arguments) for seed in range(arguments.seeds)]
            mean = statistics.mean(differences)
            error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
            bar = -max(0.5, 2 * error)
            passed &= judge(f"{name}, {change}", mean, bar, unit=" points")
    return 0 if passed else 1


def _difference(data: ImageData, factor: float, seed: int, arguments: argparse.Namespace) -> float:
    """Returns by how many points the suggested rate is more accurate than the recipe's rate times `factor`."""
    recipe = resolve_recipe("quick", epochs=arguments.epochs, batch_size=64)
    recipe = recipe.changed(lr=factor * recipe.lr)
    found = resnetlab.find_lr(arguments.model, data, recipe=recipe, seed=seed, quiet=True)
    words = f"{data.name}, seed {seed}, recipe {recipe.lr:.3g}, suggested {found.suggestion or math.nan:.3g}"
    if found.suggestion is None or found.keeps_recipe:
        print(f"{words}: kept", flush=True)
        return 0.0
    top1 = []
    for rate in (recipe.lr, found.suggestion):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"recipe": recipe.changed(lr=rate), "seed": seed, "quiet": True}
            summary = resnetlab.fit(arguments.model, data, out=Path(folder) / "run", **settings).summary
        assert summary is not None
        top1.append(100 * summary["top1"])
    print(f"{words}: {top1[0]:.2f} % with the recipe's, {top1[1]:.2f} % with the suggested rate", flush=True)
    return top1[1] - top1[0]


if __name__ == "__main__":
    sys.exit(main())
