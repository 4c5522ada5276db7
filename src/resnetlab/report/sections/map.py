"""The map of the embeddings, which the page's program draws, and how far it can be believed."""

from __future__ import annotations

import math

from resnetlab.report.evaluation_files import Results
from resnetlab.report.markup import counted, note

_METHODS = {
    "tsne": "t-SNE (van der Maaten and Hinton 2008) arranges the images by what the network makes of them just before "
    "it decides: near points are alike to it. Distances between groups, their sizes and both axes mean nothing.",
    "pca": "The first two principal components of what the network makes of the images just before it decides: near "
    "points may still be far apart in the components that are not shown.",
}


def embedding_map(results: Results) -> str:
    """The map, its controls and its figures in words; or what makes it."""
    if results.exploration is None:
        return note(
            f"There is no map of the embeddings: this run was evaluated without one. This command makes it: "
            f"{results.command}"
        )
    found = results.exploration.map
    words = f"<p>{_METHODS.get(found.method, 'Near points are alike to the network.')}</p>"
    if not math.isnan(found.neighbor_accuracy):
        words += (
            f"<p>A vote of the ten nearest images names the class of {found.neighbor_accuracy:.2%} of the images in "
            f"the network’s own space, and of {found.map_accuracy:.2%} in this map. "  # noqa: RUF001
            "Where the second is much lower, the map does not show what the network knows.</p>"
        )
    shown = counted(len(found.points), "image")
    label = (
        f"Map of {shown}, a point each. The arrow keys go from image to image; what is found is said below the map. "
        "Its figures are in the words above."
    )
    return (
        f'{words}<div class="map" id="embedding-map"><div class="controls">'
        '<div role="group" aria-label="Color of the points">'
        '<button type="button" data-color="class" aria-pressed="true">By class</button>'
        '<button type="button" data-color="error" aria-pressed="false">By right or wrong</button></div>'
        '<div role="group" aria-label="Size of the map">'
        '<button type="button" data-zoom="in">Closer</button><button type="button" data-zoom="out">Farther</button>'
        '<button type="button" data-zoom="all">Whole map</button></div></div>'
        f'<canvas tabindex="0" role="application" aria-roledescription="map" aria-label="{label}"></canvas>'
        '<p class="caption" role="status">Point at an image to see it, choose it to see the others of its kind. '
        "When closer, drag to move.</p>"
        '<div class="key"></div></div>'
    )
