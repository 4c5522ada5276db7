"""Counters of the service in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts values in buckets."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yields its lines of text."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:g}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What the service has done since its start."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._batches: dict[str, Histogram] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request; status 499 is a client that went away."""
        self._requests[route, status] += 1
        self._seconds.setdefault(route, Histogram(_SECONDS)).add(seconds)

    def batch(self, model: str, size: int) -> None:
        """Counts a batch of the network; its sum is the number of images."""
        self._batches.setdefault(model, Histogram(_SIZES)).add(size)

    def text(self, gauges: dict[str, float]) -> str:
        """Returns all counters, and the given present values."""
        lines = [
            "# HELP resnetlab_requests_total Requests by route and status.",
            "# TYPE resnetlab_requests_total counter",
        ]
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'resnetlab_requests_total{{route="{route}",status="{status}"}} {count}')
        lines += ["# HELP resnetlab_request_seconds Seconds by route.", "# TYPE resnetlab_request_seconds histogram"]
        for route, histogram in sorted(self._seconds.items()):
            lines += histogram.lines("resnetlab_request_seconds", f'route="{route}"')
        lines += ["# HELP resnetlab_batch_images Images by batch.", "# TYPE resnetlab_batch_images histogram"]
        for model, histogram in sorted(self._batches.items()):
            lines += histogram.lines("resnetlab_batch_images", f'model="{_escaped(model)}"')
        for name, value in gauges.items():
            lines += [f"# TYPE resnetlab_{name} gauge", f"resnetlab_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
