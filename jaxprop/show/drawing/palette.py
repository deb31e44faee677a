"""The colours of every picture: slate for the forward pass, amber for the backward pass.

The static pictures, the page and the plots take their colours from here. The scale of cotangent norms has one
hue, from light to dark (from dark to light in the dark theme): lightness alone gives the order, so it can be
read by colour-blind people and in print without colour.
"""

import math
from collections.abc import Mapping, Sequence

_LIGHT = ("#fdf3dc", "#fbe5b6", "#f8d084", "#f3b453", "#e99531", "#d8731c", "#b85410", "#8d3b0c", "#5f2708")
_DARK = ("#3a2b20", "#57391f", "#7a4a1d", "#a0601d", "#c4771f", "#e2932f", "#f1b053", "#f8cd85", "#fde8bf")
#: The steps of the scale of cotangent norms.
RAMPS: Mapping[str, Sequence[str]] = {"light": _LIGHT, "dark": _DARK}
#: Levels of a heat map on each side of zero.
LEVELS = 8

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "paper": "#ffffff", "ink": "#22262b", "soft": "#5f666f", "card": "#ffffff", "line": "#bfbbb1",
        "faint": "#f3f1ec", "frame": "#faf8f4", "forward": "#47607a", "backward": "#b85410", "weak": "#c9c5bb",
        "parameter": "#0b6e4f", "loss": "#6b3fa0", "bad": "#8a1c4a", "on_bad": "#ffffff",
        "below": "#2f6f9f", "middle": "#f7f5f0", "above": "#b85410",
    },
    "dark": {
        "paper": "#14161a", "ink": "#e9e7e2", "soft": "#a6abb3", "card": "#1d2026", "line": "#4a505a",
        "faint": "#272b32", "frame": "#191c21", "forward": "#8fa9c4", "backward": "#f0994a", "weak": "#4a505a",
        "parameter": "#57cba0", "loss": "#c3a0ef", "bad": "#ff8fb8", "on_bad": "#2b0716",
        "below": "#6db3e8", "middle": "#262a31", "above": "#f0994a",
    },
}  # fmt: skip


def ramp_step(norm: float | None, scale: tuple[float, float] | None) -> int | None:
    """The step of a norm on the logarithmic scale, from 0 to 8; None if it has no colour."""
    if norm is None or scale is None or not math.isfinite(norm):
        return None
    if norm == 0:
        return 0
    low, high = scale
    position = (math.log10(norm) - low) / (high - low)
    return min(max(int(position * len(_LIGHT)), 0), len(_LIGHT) - 1)


def blend(a: str, b: str, part: float) -> str:
    """Mix two colours: `a` for `part = 0`, `b` for `part = 1`."""
    pairs = ((int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(x + (y - x) * part):02x}" for x, y in pairs)


def text_on(colour: str) -> str:
    """Black or white, whichever has more contrast on a colour.

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """

    def linear(part: str) -> float:
        c = int(part, 16) / 255
        return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4

    r, g, b = (linear(colour[i : i + 2]) for i in (1, 3, 5))
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#ffffff"


def rules(theme: str) -> dict[str, str]:
    """Style rules for the colours of numbers: `.c0` to `.c8`, and the levels of heat maps."""
    colours = THEMES[theme]
    found = {}
    for i, colour in enumerate(RAMPS[theme]):
        found[f".c{i}"] = f"fill:{colour}"
        found[f".on{i}"] = f"fill:{text_on(colour)}"
    for level in range(-LEVELS, LEVELS + 1):
        end = colours["above" if level > 0 else "below"]
        found[f".{level_class(level)}"] = f"fill:{blend(colours['middle'], end, abs(level) / LEVELS)}"
    return found | {".nan": f"fill:{colours['bad']}", ".onnan": f"fill:{colours['on_bad']}"}


def level_class(level: int) -> str:
    """The style class of a level of a heat map, from `mn8` to `mp8`."""
    return f"m{'n' if level < 0 else 'p'}{abs(level)}"


#: The colours that the page shares with the static pictures; those of its own controls are in its style sheet.
_SHARED = [
    "ink",
    "soft",
    "forward",
    "backward",
    "parameter",
    "loss",
    "bad",
    "on_bad",
    "below",
    "middle",
    "above",
]


def variables(theme: str) -> str:
    """The shared colours as CSS variables: `--ink`, `--c0`, `--on-c0`, ..."""
    named = {name.replace("_", "-"): THEMES[theme][name] for name in _SHARED}
    for i, colour in enumerate(RAMPS[theme]):
        named |= {f"c{i}": colour, f"on-c{i}": text_on(colour)}
    return "".join(f"--{name}:{colour};" for name, colour in named.items())
