"""Training: the step and the loop. Gradients by jaxprop, updates by optax, checkpoints by Orbax, devices by
JAX.
"""

from .checkpoint.checkpoint import Checkpoint as Checkpoint
from .checkpoint.checkpoint import CheckpointError as CheckpointError
from .checkpoint.store import Store as Store
from .checkpoint.store import open_store as open_store
from .data.data import Data as Data
from .data.sharding import Placement as Placement
from .data.sharding import data_parallel as data_parallel
from .data.sharding import explicit_sharding as explicit_sharding
from .data.sharding import fully_sharded as fully_sharded
from .examples.per_example import PerExample as PerExample
from .examples.per_example import per_example as per_example
from .loop.evaluate import Evaluation as Evaluation
from .loop.fit import fit as fit
from .loop.history import History as History
from .loop.history import Stop as Stop
from .loop.until import Until as Until
from .loop.until import below as below
from .loop.watched_history import WatchedHistory as WatchedHistory
from .loop.watched_history import WatchedValue as WatchedValue
from .step.state import Metrics as Metrics
from .step.state import State as State
from .step.step import Step as Step
from .step.step import make_step as make_step
from .step.watch import Watch as Watch
from .step.watched import ExampleNorms as ExampleNorms
from .step.watched import LeafNorms as LeafNorms
from .step.watched import Watched as Watched
from .writers.console import Console as Console
from .writers.files import CSV as CSV
from .writers.files import JSONL as JSONL
from .writers.trackers import MLflow as MLflow
from .writers.trackers import TensorBoard as TensorBoard
from .writers.trackers import WandB as WandB
from .writers.writer import Writer as Writer
