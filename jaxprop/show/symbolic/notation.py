"""Mathematics as it is written: in text, in LaTeX, and numbers in six digits."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spelled:
    """A piece of mathematics in text and in LaTeX."""

    text: str
    latex: str

    def __bool__(self) -> bool:
        return bool(self.text)


EMPTY = Spelled("", "")


def spell(x: Any) -> str:
    """A number in six digits: -2, 0.5, 1.5e-05."""
    x = np.asarray(x).item() if not isinstance(x, int | float | complex) else x
    if isinstance(x, bool):
        return str(x)
    if isinstance(x, complex):
        return f"{x.real:.6g}{x.imag:+.6g}j"
    return f"{x:.6g}"
