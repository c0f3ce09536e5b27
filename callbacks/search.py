"""What a person wants to see of a search: every evaluation as a table and in pictures, in the run's folder and in W&B.

A search makes a hundred evaluations a second, so an evaluation costs no more here than its place in a few columns.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from callbacks.drawing import draw_genotype, draw_search
from callbacks.trajectory import Trajectory
from esformer.atomic import write_text
from esformer.search.evolution import Scored
from esformer.search.journal import Evaluation
from esformer.search.schedule import Phase
from esformer.search.stage import SearchCallback, SearchResult, SearchStage

SHARE = 0.02
"""How much of a search's time its files may take."""


class SearchHistory(SearchCallback):
    """Keeps all evaluations as `search.csv` and `search.png`, and draws what was found as `genotype.png`.

    The files are written after a phase, not too often, and at the end. They are made from the journal and what came
    after it, so a kill costs them nothing: the next session writes them whole.

    Args:
        folder: where the files go.
        every: the least seconds between two writings; long searches, whose files take longer, wait longer.
    """

    def __init__(self, folder: Path, every: float = 30) -> None:
        self.table, self.picture, self.drawing = folder / "search.csv", folder / "search.png", folder / "genotype.png"
        self.every = every
        self.trajectory = Trajectory([])
        self._next = float("-inf")

    def on_search_start(self, stage: SearchStage) -> None:
        self.trajectory = Trajectory(stage.schedule.steps())
        for evaluation in stage.journal:
            self.trajectory.append(evaluation)

    def on_evaluation(self, stage: SearchStage, evaluation: Evaluation) -> None:
        self.trajectory.append(evaluation)

    def on_phase_end(self, stage: SearchStage, phase: Phase, best: Scored) -> None:
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self._write(stage)
            now = time.monotonic()
            self._next = now + max(self.every, (now - began) / SHARE)

    def on_search_end(self, stage: SearchStage, result: SearchResult) -> None:
        self._write(stage)
        price = f"{result.cost.params / 1e6:.2f} M parameters, {result.cost.macs / 1e9:.3f} GMACs"
        draw_genotype(result.genotype, self.drawing, f"The network found in space {result.genotype.space}: {price}")

    def _write(self, stage: SearchStage) -> None:
        write_text(self.table, self.trajectory.csv())
        draw_search(self.trajectory, asdict(stage.budget), self.picture)


class SearchLog(SearchCallback):
    """Sends the search to the loggers as `search/...`, over `search/evaluation`.

    A point now and then, always after the same evaluations; at the end the pictures, and for W&B the genotype as an
    artifact. A point holds, of the phase so far: each proxy's `best` score and the `median` of the population, what the
    best one costs and the budget allows; also `evaluations_per_second` and how many phases went before (`phase`).

    Args:
        history: what it tells of; must come before this in the list of callbacks.
        every: evaluations between two points.
    """

    def __init__(self, history: SearchHistory, every: int = 50) -> None:
        self.history, self.every = history, every
        self._sent = 0

    def on_search_start(self, stage: SearchStage) -> None:
        self._sent = 0
        for logger in stage.fabric.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.define_metric("search/evaluation", hidden=True)
                logger.experiment.define_metric("search/*", step_metric="search/evaluation")

    def on_evaluation(self, stage: SearchStage, evaluation: Evaluation) -> None:
        if evaluation.evaluation % self.every == 0:
            self._send(stage)

    def on_phase_end(self, stage: SearchStage, phase: Phase, best: Scored) -> None:
        self._send(stage)

    def on_search_end(self, stage: SearchStage, result: SearchResult) -> None:
        self._send(stage)
        pictures = {"search/trajectory": self.history.picture, "search/genotype": self.history.drawing}
        for logger in stage.fabric.loggers:
            if hasattr(logger, "log_image"):
                for name, path in pictures.items():
                    logger.log_image(name, [str(path)])
            if isinstance(logger, WandbLogger):
                _send_genotype(logger, result)

    def _send(self, stage: SearchStage) -> None:
        if len(self.history.trajectory) == self._sent:  # phases that end together
            return
        self._sent = len(self.history.trajectory)
        values = point(self.history.trajectory, asdict(stage.budget), self.every)
        for logger in stage.fabric.loggers:
            # W&B has its own x-axis for these; a step would go to the one that Lightning keeps for the training
            logger.log_metrics(values, step=None if isinstance(logger, WandbLogger) else self._sent)


def point(trajectory: Trajectory, limits: dict[str, float | None], last: int) -> dict[str, float]:
    """What loggers are told of the search after its newest evaluation; the speed is that of the last ones."""
    span, n = trajectory.last_span(), len(trajectory)
    place = span.start + int(trajectory.best(span)[-1])
    best = slice(place, place + 1)
    values: dict[str, float] = {"evaluation": n, "phase": len(trajectory.spans()) - 1}
    for proxy in span.proxies:
        values[f"{proxy}/best"] = trajectory.scores(proxy, best)[0]
        values[f"{proxy}/median"] = trajectory.medians(span, proxy, np.array([n - 1 - span.start]))[0]
    values |= {name: trajectory.column(name, best)[0] for name in trajectory.costs}
    values |= {f"budget_{name}": limit for name, limit in limits.items() if limit is not None}
    if (rate := trajectory.rate(last)) == rate:
        values["evaluations_per_second"] = rate
    return {f"search/{name}": float(value) for name, value in values.items()}


def _send_genotype(logger: WandbLogger, result: SearchResult) -> None:
    """The genotype as an artifact of the run: anyone can fetch the file and train it."""
    import wandb

    facts: dict[str, Any] = {**asdict(result.cost), **result.scores, "space": result.genotype.space}
    artifact = wandb.Artifact(f"genotype-{logger.version}", type="genotype", metadata=facts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "genotype.yaml"
        result.genotype.save(path)
        artifact.add_file(str(path))  # copies it
    logger.experiment.log_artifact(artifact)
