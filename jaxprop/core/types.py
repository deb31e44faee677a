"""Type aliases used throughout the package."""

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

#: The lengths of the leading axes that a value gains inside scans, one for each scan around it.
Steps: TypeAlias = tuple[int, ...]

#: A user function of unknown signature.
Function: TypeAlias = Callable[..., PyTree]

#: Which positional arguments are differentiated.
Argnums: TypeAlias = int | Sequence[int]
