"""The nouns of the package, as types."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any

#: One cotangent for each output of a node; `None` where no cotangent comes.
OutCts: TypeAlias = tuple[Array | None, ...]

#: One cotangent for each operand of a node; `None` where nothing is sent back.
InCts: TypeAlias = Sequence[Array | None]

#: The last axes a value gains by standing inside opened scans: one length for each.
Steps: TypeAlias = tuple[int, ...]
