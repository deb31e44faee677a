"""Arrays in a word, for the texts of tapes."""

import jax
import numpy as np

from .. import _jaxpr
from .._text import number


def brief(x: object) -> str:
    """A scalar as its number, an array as its type, anything else by the name of its class."""
    if x is None:
        return "None"
    if isinstance(x, bool | int | float | complex):  # a plain number among the arguments
        return f"{np.asarray(x).item()}"
    if not isinstance(x, jax.Array):
        return type(x).__name__
    return f"{x}" if x.ndim == 0 and not _jaxpr.is_tracer(x) else f"{x.dtype}{list(x.shape)}"


def size(x: object) -> str:
    """A scalar as its number, an array by its norm, a `Summary` by the norm in it; "" for what is not there."""
    x = getattr(x, "norm", x)
    if x is None or _jaxpr.is_tracer(x) or not hasattr(x, "dtype") and not isinstance(x, float | int):
        return ""
    if _jaxpr.is_key(x):
        return "key"
    array = np.asarray(x)
    if array.ndim == 0:
        return number(array)
    return f"{number(np.linalg.norm(array.astype(complex).ravel()))} (norm)"
