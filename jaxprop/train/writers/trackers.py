"""Writers for other people's trackers, each imported where it is used."""
# The packages are extras: types are checked without them.
# pyright: reportMissingImports=false

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from .writers import number_of

_AT_ONCE = 1000  # metrics MLflow takes in one call
_REFUSED = re.compile(r"[^\w./ :-]")  # what MLflow takes no names with


def _absent(name: str, package: str, extra: str) -> str:
    return f"{name} writes through {package}, which is not installed: pip install 'jaxprop-toolkit[{extra}]'"


class TensorBoard:
    """Write event files that TensorBoard reads; each name is a scalar chart.

    A resumed run tells TensorBoard to forget the steps that come again.

    Args:
        directory: where the event files go.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError(_absent("TensorBoard", "tensorboardX", "tensorboard")) from error
        self._make = lambda **options: tensorboardX.SummaryWriter(
            os.fspath(directory), filename_suffix=f".{time.time_ns()}", **options
        )
        self._writer: Any = None

    def resume(self, step: int) -> None:
        """Go on after `step`."""
        self.close()
        self._writer = self._make(purge_step=step + 1)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add one point to each chart."""
        if self._writer is None:
            self._writer = self._make()
        for name, value in row.items():
            self._writer.add_scalar(name, number_of(name, value), step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """Log rows to a run of Weights & Biases.

    Args:
        run: a run that is open already, which stays open; or None, and one is begun with `options` at the first
            row and finished at the end.
        options: of `wandb.init`: `project`, `name`, `mode="offline"` and so on. To go on with a run, give its
            `id` and `resume="allow"`.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(_absent("WandB", "wandb", "wandb")) from error
        self._begin = lambda: wandb.init(**options)
        self._own = run is None
        self.run = run

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Log the row at `step`."""
        if self.run is None:
            self.run = self._begin()
        self.run.log({name: number_of(name, value) for name, value in row.items()}, step=step)

    def close(self) -> None:
        """Finish the run, if it was begun here."""
        if self._own and self.run is not None:
            self.run.finish()
            self.run = None


class MLflow:
    """Log rows as metrics of an MLflow run.

    Uses a client of its own, so the run that is active elsewhere in the program is left alone.

    Args:
        experiment: its name; made if it is not there.
        run_id: a run to go on with; a new one where None.
        tracking_uri: where runs are kept; MLflow's own choice where None.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(
        self, experiment: str = "jaxprop", *, run_id: str | None = None, tracking_uri: str | None = None
    ):
        try:
            import mlflow
            import mlflow.entities
        except ImportError as error:
            raise ImportError(_absent("MLflow", "MLflow", "mlflow")) from error
        self._client = mlflow.MlflowClient(tracking_uri)
        self._metric = mlflow.entities.Metric
        self._experiment = experiment
        self.run_id = run_id

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Log the row at `step`, in one call."""
        if self.run_id is None:
            self.run_id = self._new_run()
        now = int(time.time() * 1000)
        metrics = [
            self._metric(_REFUSED.sub("_", name), float(number_of(name, v)), now, step)
            for name, v in row.items()
        ]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _AT_ONCE])

    def close(self) -> None:
        """Mark the run as finished."""
        if self.run_id is not None:
            self._client.set_terminated(self.run_id)

    def _new_run(self) -> str:
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        return self._client.create_run(number).info.run_id
