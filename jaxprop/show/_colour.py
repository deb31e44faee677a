"""Colours of pictures: a scale the colour-blind can read, and two themes."""

import math
from collections.abc import Mapping, Sequence

#: Cividis (Nuñez, Anderton, Renslow 2018), at nine points: dark blue over grey to yellow, the same order for all eyes.
CIVIDIS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
    (138, 134, 120), (165, 156, 116), (195, 179, 105), (254, 232, 56),
)  # fmt: skip
#: Negative, zero, positive: blue, near white, orange.
DIVERGING = ((33, 102, 172), (103, 169, 207), (247, 247, 247), (239, 160, 92), (179, 88, 6))
#: Of what is not finite.
ALARM = "#d55e00"

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "paper": "#ffffff", "ink": "#1b1f24", "soft": "#5b6470", "card": "#ffffff", "line": "#aab2bd",
        "edge": "#6b7480", "faint": "#eef0f3", "group": "#5b6470", "tint": "#f5f7fa", "back": "#9a4f00",
        "parameter": "#0b6e4f", "data": "#5b6470", "loss": "#7a3e9d", "alarm": "#c24e00",
    },
    "dark": {
        "paper": "#14171b", "ink": "#e8eaed", "soft": "#a3acb8", "card": "#1f242a", "line": "#55606c",
        "edge": "#97a1ad", "faint": "#2a3037", "group": "#97a1ad", "tint": "#191d22", "back": "#f0a860",
        "parameter": "#5ecfa3", "data": "#a3acb8", "loss": "#c79be3", "alarm": "#ff8a3d",
    },
}  # fmt: skip


def blend(stops: Sequence[tuple[int, int, int]], where: float) -> str:
    """The colour at a place between 0 and 1 on a scale, as `#rrggbb`."""
    at = min(max(where, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    parts = (
        round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in parts)


def of_norm(norm: float | None, scale: tuple[float, float] | None) -> str | None:
    """The colour of a cotangent norm on a logarithmic scale; None where there is none to show."""
    if norm is None or scale is None:
        return None
    if not math.isfinite(norm):
        return ALARM
    if norm == 0:
        return blend(CIVIDIS, 0.0)
    low, high = scale
    return blend(CIVIDIS, (math.log10(norm) - low) / (high - low) if high > low else 1.0)


def on(colour: str) -> str:
    """Black or white, whichever reads better on a colour (WCAG relative luminance)."""

    def linear(part: str) -> float:
        c = int(part, 16) / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    r, g, b = (linear(colour[i : i + 2]) for i in (1, 3, 5))
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#ffffff"
