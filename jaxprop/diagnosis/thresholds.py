"""The thresholds beyond which something is reported, all in one place."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Thresholds:
    """The thresholds beyond which a gradient is reported to vanish, to explode, to be dead or saturated.

    Attributes:
        vanishing: smallest `|ct at the start| / |ct at the end|` of a chain of values, or of the steps of a
            loop, that is not reported; dimensionless. Ten layers that each take three quarters make 1e-6.
        exploding: largest such ratio that is not reported.
        dead: largest fraction of units without a cotangent through a rectifier that is not reported, between
            0 and 1.
        saturated: smallest local gain `|in_ct| / |out_ct|` of a sigmoid, tanh or softmax that is not reported;
            dimensionless.
        cancellation: smallest `|sum| / sum of |terms|` of the cotangents a value gets from its consumers that
            is not reported; dimensionless. Below 1e-4, four of the seven digits of float32 are lost.

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
                raise ValueError(f"the threshold `{item.name}` must be 0 or more, got {number!r}.")
