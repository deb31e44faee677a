"""From where on something is worth saying: stated in one place, and adjustable."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Thresholds:
    """From where on a gradient is said to vanish, to explode, to be dead or saturated.

    Attributes:
        vanishing: least `|ct at the start| / |ct at the end|` of a chain of values, or of the steps of a
            loop; a pure number. Ten layers that take three quarters each make 1e-6.
        exploding: greatest such ratio.
        dead: greatest fraction of units that get no cotangent through a rectifier, between 0 and 1.
        saturated: least local gain `|in_ct| / |out_ct|` of a sigmoid, tanh or softmax; a pure number.
        cancellation: least `|sum of shares| / sum of |shares|` at a value read more than once; a pure number.
            Below 1e-4, four of the seven digits of float32 are gone.

    Examples:
        >>> from jaxprop.diagnosis import Thresholds
        >>> Thresholds(vanishing=1e-8).vanishing
        1e-08
    """

    vanishing: float = 1e-4
    exploding: float = 1e4
    dead: float = 0.5
    saturated: float = 1e-3
    cancellation: float = 1e-4

    def __post_init__(self) -> None:
        for item in fields(self):
            number = getattr(self, item.name)
            if not number >= 0:
                raise ValueError(f"the threshold `{item.name}` is a number of 0 or more, got {number!r}.")
