"""An evaluation: every validation image once, what the network makes of them, how fast it is, and the report."""

import argparse
import csv
import io
import json
import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich.table import Table

from callbacks.progress import EvaluationProgress
from configs.schema import Config
from esformer.benchmarks.trained import price
from esformer.checkpoint import Checkpoint
from esformer.checkpoint.files import PREPARATION
from esformer.checkpoint.loading import network_of, opened
from esformer.data.base import NAMES, registered_opener
from esformer.data.datamodule import EvaluationDataModule
from esformer.errors import ESFormerError, out_of_memory
from esformer.export.exported import Exported, Program, exported_kind, open_exported
from esformer.files import write_text
from esformer.model.latency import device_name, time_network
from esformer.plots.confusion import draw_confusion
from esformer.plots.mistakes import draw_mistakes
from esformer.text import printable
from esformer.training.evaluation import Evaluation, Evaluator
from esformer.version import code_version
from pipelines.runtime.build import bare_trainer
from pipelines.runtime.checkpoint import check_size, evaluation_of
from pipelines.runtime.console import console
from pipelines.runtime.console import show as show_summary
from pipelines.runtime.errors import explain
from pipelines.runtime.logs import is_main, start_logging
from pipelines.runtime.memory import check_precision
from pipelines.runtime.plan import Plan
from pipelines.runtime.preflight import preflight
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.watchdog import disconnect

log = logging.getLogger("esformer")

MADE = ("digits", "synthetic")
"""Images that lie in no folder; where one is given, they are not meant."""
LARGEST_BATCH = 1_000_000
"""Images at a time, at most."""
SECONDS = 5.0
"""For a batch to be timed over and over."""
LONGEST = 60
"""Characters of a class's name in the printed table."""
SHOWN = 20
"""Classes in the printed table: all, or the best and the worst."""


class EvaluationError(ESFormerError):
    """What cannot be evaluated; says why."""


def run(config: Config, flags: argparse.Namespace, argv: Sequence[str] | None) -> dict[str, Any]:
    """Check, evaluate, time, write and print. Rank 0 returns what evaluation.json holds, others what they know.

    Args:
        config: images and machine.
        flags: of `pipelines.evaluate`, with the checkpoint as `found`.
        argv: its arguments, by default the process's own.
    """
    found, folder = flags.found, flags.out or evaluation_of(flags.checkpoint)
    check_flags(found, flags, config.data.img_size)
    plan = preflight("evaluate", config, argv, folder)
    if isinstance(found, Exported):
        check_machine(found, plan)
    config = plan.config
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    data = EvaluationDataModule(config.data, flags.batch_size)
    data.setup("validate")
    classes = check(found, data)
    progress = EvaluationProgress(len(data.val_set), bar=sys.stdout.isatty())
    trainer = bare_trainer(plan, callbacks=[progress])
    check_precision(config.trainer, trainer.strategy.root_device, training=False)
    if isinstance(found, Exported):
        network = found.network()
    else:
        network = network_of(found, ema=not flags.raw, img_size=config.data.img_size)
    evaluator = Evaluator(network, found.num_classes, flags.batch_size)
    with results(folder):
        corrupt = evaluate(trainer, evaluator, data)
        report = describe(found, plan, ema=not flags.raw) | {"devices": trainer.world_size}
        report |= summarise(evaluator.found, corrupt, classes)
        if is_main():
            report |= measure(trainer, evaluator, data, config)
            report |= {"precision": "int8"} if "quantized" in report else {}
            try:
                write(folder, report, evaluator.found)
            except OSError as error:
                raise EvaluationError(f"the results cannot be written to {folder}: {error.strerror}") from None
            finally:
                show(report, folder)
            of_run = RunFolder(folder.parent.parent, "")
            if folder.parent == of_run.checkpoints:
                of_run.report(at_end=True)
    return report


def checkpoint_defaults(arguments: argparse.Namespace) -> list[str]:
    """The settings that a checkpoint, or an exported file, brings with it; it stays with the arguments as `found`.

    Raises:
        ESFormerError: it cannot be opened, or has no network for square colour images that tells classes apart.
    """
    start_logging()
    name, kind = arguments.checkpoint, exported_kind(arguments.checkpoint)
    arguments.found = found = open_exported(Path(name), kind) if kind else opened(name)
    return defaults_of(found, arguments.settings, arguments.quick)


def defaults_of(found: Checkpoint, settings: Sequence[str], quick: bool = False) -> list[str]:
    """The settings that what is known of a network brings with it: which images, and how they are prepared.

    Args:
        found: what is known of it.
        settings: those that a person writes, which come after and win.
        quick: whether `--quick` chooses the images.

    Raises:
        EvaluationError: it takes no square colour images, or tells no classes apart.
    """
    if found.num_classes < 2:
        raise EvaluationError(f"{found.path} holds no classifier of at least 2 classes")
    if found.in_chans != 3:
        raise EvaluationError(f"{found.path} takes images of {found.in_chans} channels; ours have 3")
    height, width = found.img_size
    given = {setting.partition("=")[0] for setting in settings}
    if height != width and isinstance(found, Exported):
        raise EvaluationError(f"{found.path} takes images of {height} x {width} pixels, and ours are square")
    if height != width and "data.img_size" not in given:
        raise EvaluationError(
            f"{found.path} takes images of {height} x {width} pixels, and ours are square: give data.img_size=PIXELS"
        )
    name = found.data.get("name", "folder")
    foreign = [f"data.name={name}"] if registered_opener(name) else []
    if name not in NAMES or ("data.root" in given and name in MADE):
        name = "folder"
    prepared = {word: found.data[word] for word in PREPARATION if word in found.data}
    prepared = {word: list(value) if isinstance(value, tuple) else value for word, value in prepared.items()}
    known = {"img_size": height} | prepared
    choice = [] if quick else [f"data={name}", *foreign]  # which has images of its own
    device = ["trainer.accelerator=cpu"] if isinstance(found, Exported) else []
    return [*choice, *device, *(f"data.{key}={value}" for key, value in known.items())]


def check_flags(found: Checkpoint, flags: argparse.Namespace, img_size: int) -> None:
    """Refuse what cannot be asked of a network, or of a file that another runtime runs.

    Raises:
        ESFormerError: says what may be, or what to leave out.
    """
    if not 1 <= flags.batch_size <= LARGEST_BATCH:
        raise EvaluationError(f"--batch-size is {flags.batch_size}; it must be from 1 to {LARGEST_BATCH:,}")
    check_size(img_size, img_size)
    if not isinstance(found, Exported):
        return
    if flags.raw:
        raise EvaluationError(f"{found.path} has one kind of weights, those that were exported: leave out --raw")
    if img_size != found.img_size[0]:
        raise EvaluationError(
            f"{found.path} takes images of {found.img_size[0]} pixels, not of data.img_size={img_size}: for those,"
            f" export the checkpoint again with --img-size {img_size}"
        )


def check_machine(found: Exported, plan: Plan) -> None:
    """Refuse a machine on which another runtime does not run a file.

    Raises:
        EvaluationError: says what to leave out.
    """
    trainer = plan.config.trainer
    if trainer.accelerator != "cpu" or plan.processes.world_size > 1 or plan.precision != "32-true":
        raise EvaluationError(
            f"{found.path} is run by one process on the CPU, in the arithmetic that it was written for: leave out"
            " trainer.accelerator, trainer.devices, trainer.num_nodes and trainer.precision"
        )


def check(found: Checkpoint, data: EvaluationDataModule) -> list[str]:
    """The names of the images' classes, or the checkpoint's if these have none. A warning tells of what is in doubt:
    how the images are to be prepared, and whether their classes are in the checkpoint's order.

    Raises:
        EvaluationError: there are not as many.
    """
    count, theirs, ours = data.config.num_classes, list(found.data.get("classes", ())), data.describe()["classes"]
    if count != found.num_classes:
        place = data.config.root or data.config.name
        raise EvaluationError(f"{found.path} knows {found.num_classes} classes, and the images of {place} have {count}")
    if not {"mean", "std"} <= found.data.keys():
        words = "%s does not say how its images were prepared; here they are with mean %s and standard deviation %s"
        log.warning(words, found.path, data.config.mean, data.config.std)
    pairs = enumerate(zip(theirs, ours, strict=False))
    if differ := next(((number, *both) for number, both in pairs if both[0] != both[1]), None):
        log.warning("class %d is %r in the checkpoint and %r in the images: are they in the same order?", *differ)
    return ours or theirs or [str(number) for number in range(found.num_classes)]


@contextmanager
def results(folder: Path) -> Iterator[None]:
    """A folder that can be written, made now, and gone again if nothing comes of it; rank 0 sees to it.

    Raises:
        EvaluationError: it cannot be written.
    """
    if is_main():
        try:
            if folder.is_file():
                raise EvaluationError(f"{folder} is a file; choose a folder as --out")
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise EvaluationError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    try:
        yield
    finally:
        if is_main():
            with suppress(OSError):
                folder.rmdir()  # only if it is empty
    disconnect()


def evaluate(trainer: Trainer, evaluator: Evaluator, data: EvaluationDataModule) -> list[str]:
    """Show every image to the network; gives the corrupt ones of all ranks.

    Raises:
        EvaluationError: no image could be read, or the network gives numbers that are none.
    """
    import torch.distributed as dist

    try:
        trainer.validate(evaluator, data, verbose=False)
    except Exception as error:
        if out_of_memory(error):
            raise too_many(data.batch_size) from None
        raise explain(error) from None
    corrupt = [list(data.corrupt)]
    if dist.is_initialized():
        corrupt = [[]] * trainer.world_size
        dist.all_gather_object(corrupt, list(data.corrupt))
    if evaluator.found.images == 0:
        raise EvaluationError(f"none of the {len(data.val_set)} images can be read")
    if not math.isfinite(evaluator.found.loss):
        raise EvaluationError(
            f"the network gives no finite numbers with trainer.precision={trainer.precision}: another may do,"
            " or the weights are bad"
        )
    return sorted(name for names in corrupt for name in names)


def too_many(images: int) -> EvaluationError:
    """The memory does not hold so many images at a time."""
    return EvaluationError(f"the memory does not hold {images} images at a time; give a smaller --batch-size")


def describe(found: Checkpoint, plan: Plan, ema: bool) -> dict[str, Any]:
    """Which network on which images."""
    d = plan.config.data
    return {
        "command": plan.run.command,
        "version": code_version(),
        "checkpoint": str(found.path),
        **{word: value for word, value in found.describe(ema).items() if word in ("weights", "quantized")},
        "weights_digest": found.digest(ema),
        "size": found.genotype.space,
        "genotype": found.genotype.digest,
        **asdict(price(found.genotype, d.img_size, found.num_classes)),
        "data": {word: getattr(d, word) for word in ("name", "root", "img_size", *PREPARATION)},
    }


def summarise(found: Evaluation, corrupt: list[str], classes: list[str]) -> dict[str, Any]:
    """The figures; a class is a row of its own."""
    return {
        "images": found.images,
        "corrupt": corrupt,
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "calibration_error": found.calibration_error,
        "classes": found.per_class(classes),
    }


def measure(trainer: Trainer, evaluator: Evaluator, data: EvaluationDataModule, config: Config) -> dict[str, Any]:
    """Milliseconds of one image, and images a second in batches, of the network alone on one device of this machine."""
    log.info("timing the network")
    network, device, size = evaluator.network, trainer.strategy.root_device, config.data.img_size
    threads = config.trainer.threads or torch.get_num_threads()
    evaluator.eval().to(device)  # Lightning has put it away
    images = torch.rand(data.batch_size, 3, size, size, device=device)
    with trainer.precision_plugin.val_step_context():
        elsewhere = isinstance(network, Program)
        latency = time_network(evaluator, images[:1], threads, elsewhere=elsewhere)
        batch = time_network(evaluator, images, threads, seconds=SECONDS, elsewhere=elsewhere)
    return {
        "latency": asdict(latency),
        "images_per_second": 1000 * data.batch_size / batch.ms,
        "batch_size": data.batch_size,
        "device": device_name(device),
        "threads": None if isinstance(network, Program) and network.own_threads else threads,
        "precision": trainer.precision,
    }


def write(folder: Path, report: dict[str, Any], found: Evaluation) -> None:
    """The files, each of them whole; evaluation.json is the last."""
    rows = report["classes"]
    network = f"{Path(report['checkpoint']).name}, {report['weights']} weights"
    title = f"{network}: top-1 {report['top1']:.2%} of {report['images']:,} images"
    names, data = [row["class"] for row in rows], report["data"]
    draw_confusion(found.confusion, names, title, folder / "confusion.png")
    if wrong := len(found.mistakes.images):
        title = f"{network}: the {wrong} images that it is most wrong about"
        draw_mistakes(found.mistakes, names, data["mean"], data["std"], title, folder / "mistakes.png")
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)  # of another evaluation
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "classes.csv", table.getvalue())
    write_text(folder / "evaluation.json", json.dumps(report, indent=1) + "\n")


def show(report: dict[str, Any], folder: Path) -> None:
    """The figures and the classes as tables."""
    latency, data = report["latency"], report["data"]
    lines = {name: report[name] for name in ("checkpoint", "weights", "size", "params", "macs")}
    if "quantized" in report:
        lines["weights"] += f", int8, in float: {', '.join(report['quantized']['float']) or 'no part that was tried'}"
    lines["data"] = f"{data['root'] or data['name']} at {data['img_size']} pixels"
    lines |= {name: report[name] for name in ("images", "top1", "top5", "loss", "calibration_error")}
    if report["corrupt"]:
        lines["images that cannot be read"] = len(report["corrupt"])
    lines["latency"] = f"{latency['ms']:.2f} ± {latency['error_ms']:.2f} ms for one image"
    lines["images_per_second"] = f"{report['images_per_second']:,.1f}, {report['batch_size']} at a time"
    lines["device"] = f"{report['device']}, {report['threads'] or 'its own'} threads, {report['precision']}"
    show_summary(lines | {"results": str(folder)})
    table = Table("class", *(("images", "top-1", "top-5", "precision")), "most often taken for")
    rows = sorted(report["classes"], key=lambda row: -math.inf if row["top1"] is None else -row["top1"])
    for number, row in enumerate(rows):
        if len(rows) <= SHOWN or not SHOWN // 2 <= number < len(rows) - SHOWN // 2:
            shares = ["-" if row[name] is None else f"{row[name]:.4f}" for name in ("top1", "top5", "precision")]
            name, taken = (printable(row[key] or "", LONGEST) for key in ("class", "taken_for"))
            other = f"{taken} ({row['taken_for_images']})" if taken else ""
            table.add_row(name, str(row["images"]), *shares, other)
        if len(rows) > SHOWN and number == SHOWN // 2:
            table.add_section()
            table.add_row("...")
            table.add_section()
    console().print(table)
