"""Drawings of digits as people make them: strokes in several styles, tilted, stretched, moved and unsteady."""

import itertools
import math

import numpy as np


def arc(x, y, across, down, start, end, points=18):
    """Points of an ellipse around (x, y); angles in degrees, clockwise from the right, y down."""
    angles = [math.radians(start + (end - start) * at / (points - 1)) for at in range(points)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


STYLES = {
    0: [[arc(0.5, 0.5, 0.3, 0.45, -90, 270)], [arc(0.5, 0.5, 0.22, 0.45, -60, 310)]],
    1: [[[(0.5, 0.05), (0.5, 0.95)]], [[(0.32, 0.3), (0.55, 0.05), (0.55, 0.95)]],
        [[(0.35, 0.25), (0.5, 0.05), (0.5, 0.95)], [(0.3, 0.95), (0.7, 0.95)]]],
    2: [[[*arc(0.48, 0.28, 0.27, 0.24, -170, 40), (0.2, 0.93), (0.8, 0.93)]],
        [[*arc(0.5, 0.27, 0.25, 0.22, -150, 60), (0.25, 0.9), (0.8, 0.88)]]],
    3: [[[*arc(0.45, 0.27, 0.25, 0.22, -150, 90), *arc(0.45, 0.71, 0.29, 0.23, -90, 150)]],
        [[(0.22, 0.06), (0.75, 0.06), (0.45, 0.42), *arc(0.45, 0.68, 0.29, 0.26, -80, 150)]]],
    4: [[[(0.35, 0.05), (0.2, 0.6), (0.85, 0.6)], [(0.65, 0.3), (0.62, 0.95)]],
        [[(0.65, 0.95), (0.65, 0.05), (0.15, 0.65), (0.88, 0.65)]]],
    5: [[[(0.75, 0.06), (0.3, 0.06), (0.27, 0.45), *arc(0.45, 0.67, 0.29, 0.26, -110, 140)]],
        [[(0.3, 0.08), (0.28, 0.42), *arc(0.45, 0.66, 0.27, 0.27, -110, 150)], [(0.3, 0.08), (0.75, 0.05)]]],
    6: [[[(0.65, 0.05), (0.4, 0.3), (0.26, 0.6), *arc(0.5, 0.7, 0.25, 0.24, 180, -180)]],
        [[*arc(0.6, 0.5, 0.36, 0.45, -100, -180), *arc(0.5, 0.7, 0.26, 0.25, 190, 540)]]],
    7: [[[(0.18, 0.07), (0.8, 0.07), (0.42, 0.95)]],
        [[(0.18, 0.08), (0.8, 0.06), (0.45, 0.95)], [(0.35, 0.5), (0.75, 0.48)]]],
    8: [[arc(0.5, 0.27, 0.22, 0.21, 90, 450), arc(0.5, 0.71, 0.27, 0.24, -90, 270)],
        [[*arc(0.5, 0.27, 0.23, 0.22, -30, -270), *arc(0.5, 0.72, 0.26, 0.23, -90, 270),
          *arc(0.5, 0.27, 0.23, 0.22, 90, -30)]]],
    9: [[[*arc(0.47, 0.3, 0.25, 0.25, 0, -360), (0.72, 0.3), (0.66, 0.95)]],
        [[*arc(0.48, 0.29, 0.25, 0.24, -10, -370), (0.74, 0.5), *arc(0.45, 0.65, 0.27, 0.28, -5, 120)]]],
}  # fmt: skip


def drawings(count, seed=0):
    """`count` digits with their strokes, lists of points from 0 to 1 in the pad."""
    draws = np.random.default_rng(seed)
    found = []
    for number in range(count):
        digit = number % 10
        strokes = STYLES[digit][number // 10 % len(STYLES[digit])]
        scale, stretch = draws.uniform(0.45, 0.85), draws.uniform(0.75, 1.1)
        tilt, slant = math.radians(draws.uniform(-7, 7)), draws.uniform(-0.05, 0.3)
        middle = draws.uniform(scale / 2 + 0.04, 1 - scale / 2 - 0.04, 2)
        wave, phase = draws.uniform(0, 0.02), draws.uniform(0, 6, 2)
        made = []
        for stroke in strokes:
            points = []
            for at, (x, y) in enumerate(_dense(stroke)):
                x, y = (
                    (x - 0.5) * stretch + wave * math.sin(at / 5 + phase[0]),
                    y - 0.5 + wave * math.cos(at / 6 + phase[1]),
                )
                x -= slant * y
                x, y = x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)
                points.append(
                    (float(np.clip(middle[0] + scale * x, 0, 1)), float(np.clip(middle[1] + scale * y, 0, 1)))
                )
            made.append(points)
        found.append((digit, made))
    return found


def _dense(stroke, step=0.1):
    """The points of a line, close together."""
    points = [stroke[0]]
    for (x, y), (right, down) in itertools.pairwise(stroke):
        parts = max(1, round(math.hypot(right - x, down - y) / step))
        points += [(x + (right - x) * at / parts, y + (down - y) * at / parts) for at in range(1, parts + 1)]
    return points
