"""The step and the loop: gradients by the engine, updates by optax, checkpoints by Orbax, devices by JAX."""

from ._per_example import PerExample as PerExample
from ._per_example import per_example as per_example
