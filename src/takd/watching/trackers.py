"""Trackers of experiments: TensorBoard, trackio and wandb behind one interface.

They run in the process of `takd track`, never in one that trains.
"""

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """One training, as trackers know it.

    Attributes:
        project: the experiment.
        group: the lineage, which the training seeds share.
        name: lineage and seed.
        key: digest of settings, code and inputs: a training that resumes has the same one.
        settings: settings of the training.
    """

    project: str
    group: str
    name: str
    key: str
    settings: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Name that no other training has."""
        return f"{self.name}-{self.key}".replace("/", "-")


class OpenCurve:
    """An open curve of a tracker; of a library that writes or sends what it is given without being asked to."""

    _run: Any

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Add values to the curve; `seconds` is the time of training so far, of all attempts."""
        self._run.log({**values, "seconds": seconds}, step=step)

    def flush(self) -> None:
        """Write out what was logged."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class TensorBoard(OpenCurve):
    """Event files in `logs/<experiment>/tensorboard/<lineage>/seed<k>/<key>`."""

    def __init__(self, curve: Curve, folder: Path, began: float, new: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._began = began
        self._writer = SummaryWriter(str(folder / "tensorboard" / curve.name / curve.key))
        if new:
            text = json.dumps(curve.settings, indent=1)
            # four spaces: a block of code in Markdown
            block = "\n".join(f"    {line}" for line in text.splitlines())
            self._writer.add_text("settings", block, 0, walltime=began)

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, walltime=self._began + seconds)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb(OpenCurve):
    """A run of Weights & Biases; `WANDB_MODE=offline` and its other variables hold."""

    def __init__(self, curve: Curve, folder: Path, began: float, new: bool) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=curve.project,
            group=curve.group,
            name=curve.name,
            id=curve.id.replace("/", "-"),
            config=dict(curve.settings),
            dir=str(folder),
            resume="allow",
            reinit="create_new",
            save_code=False,
            settings=wandb.Settings(console="off", silent=True),
        )


class Trackio(OpenCurve):
    """A run of trackio, in its own database (`TRACKIO_DIR`)."""

    def __init__(self, curve: Curve, folder: Path, began: float, new: bool) -> None:
        import trackio

        self._run = trackio.init(
            project=curve.project,
            name=curve.id,
            group=curve.group,
            config=dict(curve.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


Opens = Callable[[Curve, Path, float, bool], OpenCurve]
TRACKERS: dict[str, Opens] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def missing(names: Iterable[str]) -> str | None:
    """Say which packages of trackers are not installed, and how to get them; None if none is missing."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    verb, them = ("is", "it") if len(absent) == 1 else ("are", "them")
    return (
        f"{', '.join(absent)} {verb} not installed here: python -m pip install {' '.join(absent)}, or take {them} out"
        " of report.trackers. Only the machine that runs Snakemake needs a tracker."
    )
