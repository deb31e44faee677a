"""Writers for experiment trackers, each imported where it is used."""
# The packages are optional: types are checked without them.
# pyright: reportMissingImports=false

import os
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..watch.histogram import Histogram
from .writer import number_of

_BATCH = 1000  # metrics that MLflow accepts in one call
_REFUSED = re.compile(r"[^\w./ :-]")  # characters that MLflow does not accept in names


def _absent(name: str, package: str, extra: str) -> str:
    return f"{name} writes through {package}, which is not installed: pip install 'jaxprop-toolkit[{extra}]'"


class TensorBoard:
    """Write event files that TensorBoard reads; each name is a scalar chart.

    A resumed run tells TensorBoard to drop the steps that will be written again.

    Args:
        directory: Where the event files go.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError(_absent("TensorBoard", "tensorboardX", "tensorboard")) from error
        self._make = lambda **options: tensorboardX.SummaryWriter(
            os.fspath(directory), filename_suffix=f".{time.time_ns()}", **options
        )
        self._writer: Any = None

    def resume(self, step: int) -> None:
        """Continue after `step`."""
        self.close()
        self._writer = self._make(purge_step=step + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add one point to each chart."""
        if self._writer is None:
            self._writer = self._make()
        for name, value in row.items():
            self._writer.add_scalar(name, number_of(name, value), step)
        self._writer.flush()

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Add one histogram to each chart of distributions."""
        if self._writer is None:
            self._writer = self._make()
        for name, found in histograms.items():
            counts, edges = np.asarray(found.counts), found.edges
            middles = (edges[1:] + edges[:-1]) / 2
            self._writer.add_histogram_raw(
                name,
                min=float(found.low),
                max=float(found.high),
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """Log rows to a run of Weights & Biases.

    Args:
        run: An open run, which stays open; or None, and a run is started with `options` at the first row and
            finished at the end.
        options: Those of `wandb.init`: `project`, `name`, `mode="offline"` and so on. To continue a run, pass
            its `id` and `resume="allow"`.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(_absent("WandB", "wandb", "wandb")) from error
        self._start = lambda: wandb.init(**options)
        self._histogram = wandb.Histogram
        self._own = run is None
        self.run = run

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log the row at `step`."""
        if self.run is None:
            self.run = self._start()
        self.run.log({name: number_of(name, value) for name, value in row.items()}, step=step)

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Log histograms at `step`."""
        if self.run is None:
            self.run = self._start()
        parts = {name: (np.asarray(found.counts), found.edges) for name, found in histograms.items()}
        self.run.log({name: self._histogram(np_histogram=part) for name, part in parts.items()}, step=step)

    def close(self) -> None:
        """Finish the run, if it was started here."""
        if self._own and self.run is not None:
            self.run.finish()
            self.run = None


class MLflow:
    """Log rows as metrics of an MLflow run.

    It uses its own client, so a run that is active elsewhere in the program is not affected.

    Args:
        experiment: The name of the experiment; created if it does not exist.
        run_id: A run to continue; by default a new one.
        tracking_uri: Where runs are stored; by default MLflow's own setting.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(
        self, experiment: str = "jaxprop", *, run_id: str | None = None, tracking_uri: str | None = None
    ) -> None:
        try:
            import mlflow
            import mlflow.entities
        except ImportError as error:
            raise ImportError(_absent("MLflow", "MLflow", "mlflow")) from error
        self._client = mlflow.MlflowClient(tracking_uri)
        self._metric = mlflow.entities.Metric
        self._experiment = experiment
        self.run_id = run_id

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log the row at `step`, in one call."""
        if self.run_id is None:
            self.run_id = self._new_run()
        now = int(time.time() * 1000)
        metrics = [
            self._metric(_REFUSED.sub("_", name), float(number_of(name, v)), now, step)
            for name, v in row.items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])

    def close(self) -> None:
        """Mark the run as finished."""
        if self.run_id is not None:
            self._client.set_terminated(self.run_id)

    def _new_run(self) -> str:
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        return self._client.create_run(number).info.run_id
