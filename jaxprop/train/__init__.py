"""The step and the loop: gradients by the engine, updates by optax, checkpoints by Orbax, devices by JAX."""

from ._fit import fit as fit
from ._history import History as History
from ._history import Stop as Stop
from ._step import Metrics as Metrics
from ._step import State as State
from ._step import Step as Step
from ._step import make_step as make_step
from ._until import below as below
from ._watch import Leaf as Leaf
from ._watch import Watch as Watch
from ._watch import Watched as Watched
