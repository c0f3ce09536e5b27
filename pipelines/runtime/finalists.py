"""The finalists of a search: trained by successive halving; the best becomes the run's genotype.

In `run.dir/finalists/` lie `plan.json`, what was decided before the first training; the trainings, each an ordinary run
of pipelines.train; and, at the end, `result.json`. Killed, the same command reads the plan again, passes over what is
trained and goes on within what is not. With several ranks each trains on its own device.
"""

import csv
import io
import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger, WandbLogger

from callbacks.search import draw_found, send_genotype
from configs.budget import price_of
from configs.schema import Config
from esformer.checkpoint import Checkpoint, CheckpointError
from esformer.checkpoint.loading import find
from esformer.data.datasets import cpus
from esformer.files import read_json, write_text
from esformer.genotype import Genotype, notation, parse
from esformer.model.cost import Cost
from esformer.plots.finalists import draw_finalists
from esformer.search.finalists import (
    POOL,
    Finalist,
    Rung,
    describe,
    epochs_within,
    most_different,
    ranking,
    rungs,
    seconds,
)
from esformer.throttle import Throttle
from pipelines.runtime.build import search_fabric
from pipelines.runtime.plan import Plan
from pipelines.runtime.run_folder import RunFolder, read_summary
from pipelines.runtime.tracking import log_genotype
from pipelines.runtime.trainings import POLL, Job, Reached, Trainings, own_gpus, train_all

log = logging.getLogger("esformer")

NEWS = 60.0
"""Seconds between two lines about trainings that are not done."""
PACE = "pipelines.runtime.pace"
COLUMNS = ("rung", "place", "genotype", "guide", "params", "macs", "epochs", "top1", "ema_top1", "seconds")
"""Of finalists.csv; accuracies are those of the last epoch, in percent."""


@dataclass(frozen=True)
class Outcome:
    """The genotype of a run, once its finalists are trained.

    Args:
        genotype: the winner; what the search found where there are no finalists.
        summary: what `summary.json` says of them.
        checkpoint: the winner's last.
    """

    genotype: Genotype
    summary: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None

    def start(self, plan: Plan) -> Checkpoint | None:
        """The weights from which the training of the run starts; None for random ones."""
        if not plan.config.search.finalists_continue or self.checkpoint is None:
            return None
        try:
            return find(str(self.checkpoint))
        except CheckpointError:
            if plan.run.last.exists() or plan.run.previous.exists():  # it goes on from these
                return None
            raise


def choose(plan: Plan, arguments: Any, loggers: list[Logger], found: Genotype) -> Outcome:
    """Train the finalists of a search that is over, or go on with it; leaves `finalists.csv` and `finalists.png`.

    Args:
        plan: of the run, in whose folder the search lies.
        arguments: its command line; its settings are the trainings' too.
        loggers: told of the winner, and shown the picture.
        found: what the search itself found.
    """
    if not plan.config.search.finalists:
        return Outcome(found)
    file = plan.run.path / "finalists" / "result.json"
    if (result := read_summary(file)) is None:  # in all processes: nobody writes it before all have met
        fabric = search_fabric(plan)
        fabric.launch()
        stage = Stage(plan, arguments, fabric)
        ranked = stage.train()
        if fabric.is_global_zero:
            result = stage.finish(ranked, loggers)
            write_text(file, json.dumps(result, indent=1) + "\n")
        result = fabric.broadcast(result)
    assert result is not None
    checkpoint = None if result["checkpoint"] is None else plan.run.path / result["checkpoint"]
    return Outcome(parse(result["genotype"]), result["summary"], checkpoint)


class Stage:
    """The rungs of a run.

    Args:
        plan: of the run.
        arguments: its command line.
        fabric: the processes of the run; each makes its share of a rung.
    """

    def __init__(self, plan: Plan, arguments: Any, fabric: Fabric) -> None:
        self.config, self.run, self.fabric = plan.config, plan.run, fabric
        self.folder = self.run.path / "finalists"
        workers, gpus = share(plan)
        self.trainings = Trainings(self.config, arguments, workers, gpus)
        self.machine = machine(self.config, workers, gpus)
        decided: dict[str, Any] = fabric.broadcast(self._decide() if fabric.is_global_zero else {})
        self.finalists = [Finalist(parse(one["genotype"]), one["place"], one["guide"]) for one in decided["finalists"]]
        self.rungs = [Rung(**rung) for rung in decided["rungs"]]
        self.reached: list[dict[int, Reached]] = [{} for _ in self.rungs]
        """What the finalists, by their places, reached in each rung."""
        self._news = Throttle(NEWS, at_once=False)

    def train(self) -> list[Finalist]:
        """All rungs; gives the networks of the last one, the best first."""
        ranked = self.finalists
        try:
            for number, rung in enumerate(self.rungs):
                entrants = ranked[: rung.networks]
                self._train_rung(number, entrants)
                ranked = best_first(entrants, self.reached[number])
                over = ranked[1:] if rung is self.rungs[-1] else ranked  # all but the winner
                for one in over if self.fabric.is_global_zero else []:
                    shutil.rmtree(self._run_of(number, one).checkpoints, ignore_errors=True)
        finally:
            self.trainings.stop()
        return ranked

    def finish(self, ranked: Sequence[Finalist], loggers: list[Logger]) -> dict[str, Any]:
        """Make the winner the run's genotype, show it, and give what there is to know of it."""
        winner, summary, price = ranked[0], self._summary(ranked), self._cost(ranked[0])
        comment = f"found by: {self.run.command}\nthe best of {len(self.finalists)} trained finalists,"
        winner.genotype.save(self.run.genotype, comment=f"{comment} at place {winner.place} of the guide's ranking")
        draw_found(winner.genotype, price, self.run.path / "genotype.png")
        pictures = {"genotype": self.run.path / "genotype.png"}
        if self.rungs:
            pictures["finalists"] = self.run.path / "finalists.png"
            courses = [{place: one.better for place, one in reached.items()} for reached in self.reached]
            draw_finalists(courses, winner.place, pictures["finalists"])
        log_genotype(loggers, winner.genotype, params=price.params, macs=price.macs)
        for logger in loggers:
            if (show := getattr(logger, "log_image", None)) is not None:
                for name, picture in pictures.items():
                    show(f"search/{name}", [str(picture)])
            if isinstance(logger, WandbLogger):
                send_genotype(logger, self.run.genotype, {**asdict(price), **summary, "space": winner.genotype.space})
        last = self._run_of(len(self.rungs) - 1, winner).last
        checkpoint = str(last.relative_to(self.run.path)) if self.rungs else None
        return {"genotype": notation(winner.genotype), "checkpoint": checkpoint, "summary": summary}

    def _train_rung(self, number: int, entrants: Sequence[Finalist]) -> None:
        """Train those whose trainings are not done; all ranks then know what all of them reached."""
        places = {self._run_of(number, one).path: one.place for one in entrants}
        done = {folder for folder in places if read_summary(folder / "summary.json")}
        known = {places[folder]: Reached.read(folder) for folder in done} if self.fabric.is_global_zero else {}
        self._take(number, self.fabric.broadcast(known))
        jobs = [self._job(number, one) for one in entrants if self._run_of(number, one).path not in done]

        def collect(job: Job) -> tuple[int, Reached]:
            return places[job.folder], Reached.read(job.folder)

        for new in train_all(self.fabric, self.trainings, jobs, collect):
            self._take(number, dict(new))

    def _take(self, number: int, news: dict[int, Reached]) -> None:
        """What some finalists, by their places, have reached in a rung."""
        self.reached[number] |= news
        if self.fabric.is_global_zero:
            self._tell(number, news)

    def _run_of(self, number: int, one: Finalist) -> RunFolder:
        return RunFolder(self.folder / f"rung-{number + 1}" / f"{one.place:03}-{one.genotype.digest}", "")

    def _job(self, number: int, one: Finalist) -> Job:
        epochs = self.rungs[number].epochs
        settings = [f"recipe.epochs={epochs}", f"recipe.warmup_epochs={warmup(self.config, epochs)}"]
        origin = f"place {one.place} of the guide's ranking"
        folder = self._run_of(number, one).path
        return Job(one.genotype, origin, self.config.seed, folder, (*settings, *self.machine))

    def _decide(self) -> dict[str, Any]:
        """Who is trained, and for how long: decided once, for a run that goes on must decide alike."""
        file, s = self.folder / "plan.json", self.config.search
        if (decided := read_summary(file)) is not None:
            return decided
        guide = s.steps()[-1][0].guide
        chosen = most_different(ranking(self.run.journal, guide, POOL * s.finalists), s.finalists)
        if len(chosen) < s.finalists:
            log.warning("search.finalists=%d, but the search found only %d different", s.finalists, len(chosen))
        pace: dict[str, float] = {}
        epochs = s.finalists_epochs
        if s.finalists_minutes is not None and len(chosen) > 1:
            pace = self._pace(chosen[0])
            epochs = self._epochs(len(chosen), s.finalists_minutes, pace)
        steps = rungs(len(chosen), epochs)
        places = ", ".join(str(one.place) for one in chosen)
        log.info("finalists: %s; at places %s of the ranking by %s", describe(steps), places, guide)
        finalists = [{"place": one.place, "guide": one.guide, "genotype": notation(one.genotype)} for one in chosen]
        decided = {"rungs": [asdict(rung) for rung in steps], **pace, "finalists": finalists}
        self.folder.mkdir(exist_ok=True)
        write_text(file, json.dumps(decided, indent=1) + "\n")
        return decided

    def _pace(self, one: Finalist) -> dict[str, float]:
        """How long an epoch takes, and the start of a training: no longer than this measurement."""
        log.info("finalists: measuring how long an epoch takes")
        folder, began = self.folder / "pace", time.monotonic()
        try:
            self.trainings.start(Job(one.genotype, "measured", self.config.seed, folder, self.machine, PACE))
            while not self.trainings.finished():
                time.sleep(POLL)
        finally:
            self.trainings.stop()
        return {**read_json(folder / "pace.json"), "start_seconds": round(time.monotonic() - began, 1)}

    def _epochs(self, networks: int, minutes: float, pace: dict[str, float]) -> int:
        """Of the last rung, so that all rungs fit into the time; no more than the recipe has."""
        times = (self.fabric.world_size * self.trainings.workers, pace["epoch_seconds"], pace["start_seconds"])
        epochs = epochs_within(60 * minutes, networks, *times, most=self.config.recipe.epochs)
        if (least := seconds(rungs(networks, epochs), *times) / 60) > minutes:
            what = f"{networks} networks take about {least:.1f} minutes at an epoch each"
            log.warning("search.finalists_minutes=%g is not enough: %s", minutes, what)
        return epochs

    def _tell(self, number: int, news: dict[int, Reached]) -> None:
        """A line a training, and the table; now and then what those say that are not done."""
        left = sum(rung.networks * rung.epochs for rung in self.rungs)
        left -= sum(len(done) * rung.epochs for rung, done in zip(self.rungs, self.reached, strict=True))
        for place, reached in news.items():
            log.info(
                "finalists, rung %d of %d: place %d reaches %.2f %% in epoch %d; %d epochs to go in all",
                *(number + 1, len(self.rungs), place, reached.score, len(reached.top1), left),
            )
        if news:
            write_text(self.run.path / "finalists.csv", table(self._rows()))
            self._news.wait()
        elif self._news.due():
            for job, _ in self.trainings.running.values():
                log.info("%s: %s", job.folder.relative_to(self.run.path), job.last_line)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """The lines of finalists.csv, rung by rung, the best first."""
        for number, reached in enumerate(self.reached):
            for one in best_first([one for one in self.finalists if one.place in reached], reached):
                price, got = self._cost(one), reached[one.place]
                last = [values[-1] if values else None for values in (got.top1, got.ema_top1)]
                facts = (price.params, price.macs, self.rungs[number].epochs, *last, got.seconds)
                yield number + 1, one.place, notation(one.genotype), one.guide, *facts

    def _cost(self, one: Finalist) -> Cost:
        return price_of(self.config, one.genotype)

    def _summary(self, ranked: Sequence[Finalist]) -> dict[str, Any]:
        """Who won, from which place, with which accuracy, and how far ahead of the second."""
        facts: dict[str, Any] = {"finalists": describe(self.rungs), "finalists_winner_place": ranked[0].place}
        if not self.rungs:
            return facts
        first, second = (self.reached[-1][one.place].score for one in ranked[:2])
        log.info(
            "finalists: place %d of the guide's ranking wins with %.2f %%, %.2f points ahead of place %d",
            *(ranked[0].place, first, first - second, ranked[1].place),
        )
        return facts | {"finalists_top1": round(first / 100, 4), "finalists_lead": round((first - second) / 100, 4)}


def best_first(entrants: Sequence[Finalist], reached: Mapping[int, Reached]) -> list[Finalist]:
    """Networks by what they reached; of equal ones the one that the guide places higher."""
    return sorted(entrants, key=lambda one: (-reached[one.place].score, one.place))


def share(plan: Plan) -> tuple[int, list[str]]:
    """How many trainings this process makes at a time, and on which GPUs."""
    found, gpus = plan.processes, own_gpus(plan.processes, plan.gpus)
    if found.starter is not None and found.world_size > 1:  # others make theirs
        return 1, gpus
    if gpus:
        return found.devices, gpus[: found.devices]
    return plan.config.search.workers, []


def machine(config: Config, workers: int, gpus: list[str]) -> tuple[str, ...]:
    """What each training may take of this machine, as settings; so many are made at a time, or one on each GPU."""
    beside = 1 if gpus else workers
    settings = ["trainer.accumulate=auto", f"data.workers={math.ceil(config.data.loaders / beside)}"]
    if beside > 1 and config.trainer.threads is None:
        settings.append(f"trainer.threads={max(1, cpus() // beside)}")
    return tuple(settings)


def warmup(config: Config, epochs: int) -> int:
    """Epochs of warm-up in the proportion of the recipe: at least one if it has any, and never all."""
    r = config.recipe
    return min(max(1, round(r.warmup_epochs * epochs / r.epochs)), epochs - 1) if r.warmup_epochs else 0


def table(rows: Iterable[Sequence[Any]]) -> str:
    """The text of finalists.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
