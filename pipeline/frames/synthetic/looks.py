"""Presets of a clip's settings."""

from typing import Any

LOOKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "varied": {
        "poses": "varied",
        "skin": "wide",
        "fill": [0.5, 0.95],
        "off_centre": 0.06,
        "light": {
            "side_light": 0.2,
            "backlight": 0.12,
            "colour": 0.25,
            "exposure_stops": 0.9,
            "white_balance": 0.1,
        },
        "background": {"collage": 0.6},
        "occluders": {"second_hand": 0.15, "held_object": 0.15, "obstacle": 0.1},
        "imaging": {
            "motion_blur": 0.3,
            "defocus": 0.6,
            "noise": 0.05,
            "tone": 0.15,
            "jpeg": 0.5,
        },
    },
}
"""What `look` makes of the settings that are not given."""


def over_look(values: dict[str, Any]) -> dict[str, Any]:
    """The given settings of a clip, and what their `look` says of the others; a section may be given in part."""
    preset = LOOKS.get(str(values.get("look")), {})
    return {**preset, **{name: _over(preset.get(name), value) for name, value in values.items()}}


def _over(preset: Any, value: Any) -> Any:
    return {**preset, **value} if isinstance(preset, dict) and isinstance(value, dict) else value
