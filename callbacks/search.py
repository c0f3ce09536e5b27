"""What a person wants to see of a search: every evaluation as a table and in pictures, in the run's folder and in W&B.

A search makes a hundred evaluations a second, so an evaluation costs no more here than its place in a few columns.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from esformer.errors import STOPPED
from esformer.files import FileError, unwritable, write_text
from esformer.model.cost import Cost
from esformer.plots.architecture import draw_architecture
from esformer.plots.family import draw_family
from esformer.plots.search import draw_search
from esformer.search.callback import Search, SearchCallback, SearchResult
from esformer.search.family import read_family, references, write_family
from esformer.search.journal import Evaluation
from esformer.search.ranking import Scored
from esformer.search.schedule import Phase
from esformer.search.space import Architecture
from esformer.search.trajectory import Trajectory
from esformer.throttle import Throttle

SHARE = 0.01
"""How much of a search's time its files may take."""


class SearchRecorder(SearchCallback):
    """Sees every evaluation of a search, those of earlier sessions too."""

    def __init__(self) -> None:
        self.trajectory = Trajectory([])

    def on_search_start(self, stage: Search) -> None:
        self.trajectory = Trajectory(stage.schedule.steps())
        for evaluation in stage.journal:
            self.trajectory.append(evaluation)

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        self.trajectory.append(evaluation)


class StopWhenAsked(SearchCallback):
    """Ends the search after an evaluation: its journal holds everything.

    Args:
        asked: whether somebody wants this process to stop.
    """

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        if self.asked():
            raise SystemExit(STOPPED)


class SearchHistory(SearchRecorder):
    """Keeps all evaluations as `search.csv` and `search.png`, and draws what was found as `genotype.png`.

    A search for a family leaves `front.csv` and `front.png` too.

    The files are written now and then, and at the end. They are made from the journal and what came
    after it, so a kill costs them nothing: the next session writes them whole.

    Args:
        folder: where the files go.
        every: the least seconds between two writings; long searches, whose files take longer, wait longer.
        written: called after each writing, with whether it is the last.
    """

    def __init__(
        self, folder: Path, every: float = 30, written: Callable[[bool], object] = lambda at_end: None
    ) -> None:
        super().__init__()
        self.folder, self.written = folder, written
        self.references: dict[str, Scored] = {}
        """What the picture of a family compares it with."""
        self._throttle = Throttle(every, at_once=False)

    def on_search_start(self, stage: Search) -> None:
        try:  # now and not later: a folder that somebody moves away meanwhile must not appear again
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(unwritable(self.folder, error)) from None
        super().on_search_start(stage)

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        super().on_evaluation(stage, evaluation)
        if self._throttle.due():
            began = time.monotonic()
            self._write(stage)
            self.written(False)
            self._throttle.wait(max(self._throttle.every, (time.monotonic() - began) / SHARE))

    def on_search_end(self, stage: Search, result: SearchResult) -> None:
        self._write(stage)
        draw_found(result.genotype, result.cost, self.folder / "genotype.png")
        if stage.schedule.family:
            self.references = references(stage)
            family = read_family(stage.journal.path)
            write_family(family, self.folder)
            draw_family(family, self.folder / "front.png", {}, self.references)
        self.written(True)

    def _write(self, stage: Search) -> None:
        write_text(self.folder / "search.csv", self.trajectory.csv())
        draw_search(self.trajectory, asdict(stage.budget), self.folder / "search.png")


class SearchLog(SearchRecorder):
    """Sends the search to the loggers as `search/...`, over `search/evaluation`.

    A point now and then, always after the same evaluations; at the end the pictures, and for W&B the genotype as an
    artifact. A point holds, of the phase so far: each proxy's `best` score and the `median` of the population, what the
    best one costs and the budget allows; also `evaluations_per_second` and how many phases went before (`phase`).

    Args:
        every: evaluations between two points; there is one at the end of a phase too.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        self.every = every
        self._sent = 0

    def on_search_start(self, stage: Search) -> None:
        super().on_search_start(stage)
        self._sent = 0
        for logger in stage.fabric.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.define_metric("search/evaluation", hidden=True)
                logger.experiment.define_metric("search/*", step_metric="search/evaluation")

    def on_evaluation(self, stage: Search, evaluation: Evaluation) -> None:
        super().on_evaluation(stage, evaluation)
        if evaluation.evaluation % self.every == 0:
            self._send(stage)

    def on_phase_end(self, stage: Search, phase: Phase, best: Scored) -> None:
        self._send(stage)

    def on_search_end(self, stage: Search, result: SearchResult) -> None:
        self._send(stage)
        able = [logger for logger in stage.fabric.loggers if hasattr(logger, "log_image")]
        if not able:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            draw_search(self.trajectory, asdict(stage.budget), folder / "search.png")
            drawn = draw_found(result.genotype, result.cost, folder / "genotype.png")
            result.genotype.save(folder / "genotype.yaml")
            if stage.schedule.family:
                draw_family(read_family(stage.journal.path), folder / "front.png", {}, references(stage))
            for logger in able:
                logger.log_image("search/trajectory", [str(folder / "search.png")])
                if drawn:
                    logger.log_image("search/genotype", [str(folder / "genotype.png")])
                if stage.schedule.family:
                    logger.log_image("search/front", [str(folder / "front.png")])
                if isinstance(logger, WandbLogger):
                    facts = {**asdict(result.cost), **result.scores, "space": result.genotype.space}
                    send_genotype(logger, folder / "genotype.yaml", facts)

    def _send(self, stage: Search) -> None:
        if not stage.fabric.loggers or len(self.trajectory) == self._sent:  # phases may end together
            return
        self._sent = len(self.trajectory)
        values = search_metrics(self.trajectory, asdict(stage.budget), self.every)
        for logger in stage.fabric.loggers:
            # W&B has its own x-axis for these; a step would go to the one that Lightning keeps for the training
            logger.log_metrics(values, step=None if isinstance(logger, WandbLogger) else self._sent)


def search_metrics(trajectory: Trajectory, limits: dict[str, float | None], last: int) -> dict[str, float]:
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


def draw_found(genotype: Architecture, cost: Cost, path: Path) -> bool:
    """What a search found, with its cost as the title; False, and no picture, where nobody can draw such a network."""
    price = f"{cost.params / 1e6:.3g} M parameters, {cost.macs / 1e9:.3g} GMACs"
    return draw_architecture(genotype, path, f"The network found in space {genotype.space}: {price}")


def send_genotype(logger: WandbLogger, file: Path, facts: dict[str, Any]) -> None:
    """The genotype as an artifact of the run: anyone can fetch the file and train it."""
    import wandb

    artifact = wandb.Artifact(f"genotype-{logger.version}", type="genotype", metadata=facts)
    artifact.add_file(str(file))  # copies it
    logger.experiment.log_artifact(artifact)
