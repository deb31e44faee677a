"""The nouns of the package, as types."""

from collections.abc import Callable, Sequence
from typing import NewType, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree as PyTree

Array: TypeAlias = jax.Array

#: A dtype as JAX has it; `None` for that of a mutable reference.
Dtype: TypeAlias = np.dtype | None
Shape: TypeAlias = tuple[int, ...]

#: Identifies a value in its graph; -1 for a literal.
ValueId = NewType("ValueId", int)

#: Identifies a node in its graph: its number in program order, nested graphs included.
NodeIndex = NewType("NodeIndex", int)

#: The position of an operand, or of an output, of a node.
Position = NewType("Position", int)

#: One cotangent for each output of a node; `None` where no cotangent arrives.
OutCts: TypeAlias = tuple[Array | None, ...]

#: One cotangent for each operand of a node; `None` where nothing is propagated.
InCts: TypeAlias = Sequence[Array | None]

#: The leading axes a value gains inside opened scans: one length for each.
Steps: TypeAlias = tuple[int, ...]

#: A function of a user, whose signature is not known here.
Function: TypeAlias = Callable[..., PyTree]

#: Which positional arguments are differentiated.
Argnums: TypeAlias = int | Sequence[int]
