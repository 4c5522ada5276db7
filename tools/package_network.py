"""Makes a packaged network of a run: its weights in half precision, some test images, and the figures of its card.

    python tools/package_network.py runs/digits digits

The weights in the run are rounded once; everything that is printed was measured with the rounded ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import resnetlab
from resnetlab.core.runs import Run
from resnetlab.data.load import reload_data
from resnetlab.evaluation.evaluate import evaluate_split
from resnetlab.exporting.examples import choose_examples
from resnetlab.weights.file import load, write_network
from resnetlab.weights.tensors import read_description, read_header


def main() -> None:
    """Writes NAME.safetensors and NAME.npz into the package, and prints what its model card states."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="the name that `load` will take")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    path = Path(resnetlab.__file__).parent / "weights" / "trained" / f"{arguments.name}.safetensors"
    description, _ = read_description(run.weights, read_header(run.weights).metadata)
    training = {key: description["training"][key] for key in ("epoch", "epochs")}
    made = {key: value for key, value in description["provenance"].items() if key != "metrics"}
    write_network(path, load(run).half(), {"provenance": made, "training": training})
    network, data = load(path), reload_data(run.settings["data"])
    choose_examples(network, data).save(path.with_suffix(".npz"))
    figures = {name: evaluate_split(model, data).summary for name, model in (("rounded", network), ("run", load(run)))}
    sizes = {file.name: file.stat().st_size for file in sorted(path.parent.glob(f"{arguments.name}.*"))}
    print(json.dumps({"figures": figures, "sizes": sizes, "temperature": network.temperature}, indent=2))


if __name__ == "__main__":
    main()
