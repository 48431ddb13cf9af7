"""Two drawings of a whole hand: the report's mark, and the map of joint errors."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from pipeline.drawing import svg
from pipeline.drawing.skeleton import JOINT_COLOURS
from pipeline.drawing.svg import number
from pipeline.hands import BONES, JOINTS

# A relaxed right hand seen from its back, in a square from 0 to 1: for the page's mark and the error map.
HAND_SHAPE: tuple[tuple[float, float], ...] = (
    (0.50, 0.94),
    (0.36, 0.84), (0.25, 0.71), (0.17, 0.60), (0.10, 0.51),
    (0.385, 0.50), (0.34, 0.34), (0.315, 0.235), (0.295, 0.145),
    (0.505, 0.475), (0.50, 0.29), (0.50, 0.175), (0.50, 0.075),
    (0.615, 0.50), (0.645, 0.335), (0.665, 0.23), (0.68, 0.14),
    (0.71, 0.56), (0.775, 0.44), (0.815, 0.365), (0.85, 0.295),
)  # fmt: skip


def hand_errors(errors: Sequence[float], title: str, largest: float) -> Markup:
    """A hand whose joints are discs as large as their error.

    errors: 21, FreiHAND order, mm. largest: the error of the largest disc, so that several hands can be compared.
    """
    size = 260
    place = [(40 + x * (size - 60), 8 + y * (size - 24)) for x, y in HAND_SHAPE]
    body = [
        Markup('<path class="bone" d="M{} {}L{} {}"/>').format(*(svg.short(v) for v in (*place[a], *place[b])))
        for a, b in BONES
    ]
    for joint, (x, y) in enumerate(place):
        error = errors[joint]
        # Area in proportion to the error, as the eye compares areas.
        radius = 15 * math.sqrt(max(0.0, error) / largest) if largest > 0 and math.isfinite(error) else 0
        body.append(
            Markup('<circle class="joint" cx="{}" cy="{}" r="{}" fill="{}"><title>{}: {} mm</title></circle>').format(
                svg.short(x), svg.short(y), svg.short(radius), _colour(joint), JOINTS[joint], number(error)
            )
        )
    description = "Error of each joint in mm: " + ", ".join(number(e) for e in errors)
    return svg.drawing(size, size, title, description, body, "hand")


def hand_mark() -> Markup:
    """The page's mark: one hand and its rotated, shifted double, as the two views of a frame."""
    place = [((x - 0.5) * 150, (y - 0.6) * 150) for x, y in HAND_SHAPE]
    hand = []
    for a, b in BONES:
        colour = _colour(b)
        hand.append(
            Markup('<path d="M{} {}L{} {}" stroke="{}"/>').format(
                *(svg.short(v) for v in (*place[a], *place[b])), colour
            )
        )
    hand.extend(
        Markup('<circle cx="{}" cy="{}" r="3.6" fill="{}"/>').format(svg.short(x), svg.short(y), _colour(j))
        for j, (x, y) in enumerate(place)
    )
    drawn = Markup("").join(hand)
    return Markup(
        '<svg class="mark" viewBox="12 10 210 156" aria-hidden="true" focusable="false">'
        '<g class="ghost" transform="translate(150 104) rotate(38) scale(.86)">{0}</g>'
        '<path class="turn" d="M104 20A92 92 0 0 1 192 38"/><path class="turn" d="M183 29L193 39L179 42"/>'
        '<g transform="translate(84 106) rotate(-8)">{0}</g></svg>'
    ).format(drawn)


def _colour(joint: int) -> str:
    return "rgb({},{},{})".format(*JOINT_COLOURS[joint])
