"""The step and the loop: gradients by the engine, updates by optax, checkpoints by Orbax, devices by JAX."""

from ._checkpoint import Checkpoint as Checkpoint
from ._checkpoint import CheckpointError as CheckpointError
from ._checkpoint import Store as Store
from ._checkpoint import open_store as open_store
from ._fit import fit as fit
from ._history import History as History
from ._history import Stop as Stop
from ._sharding import Placement as Placement
from ._sharding import by_hand as by_hand
from ._sharding import data_parallel as data_parallel
from ._sharding import fully_sharded as fully_sharded
from ._step import Metrics as Metrics
from ._step import State as State
from ._step import Step as Step
from ._step import make_step as make_step
from ._trackers import MLflow as MLflow
from ._trackers import TensorBoard as TensorBoard
from ._trackers import WandB as WandB
from ._until import below as below
from ._watch import Leaf as Leaf
from ._watch import Watch as Watch
from ._watch import Watched as Watched
from ._writers import CSV as CSV
from ._writers import JSONL as JSONL
from ._writers import Console as Console
from ._writers import Writer as Writer
