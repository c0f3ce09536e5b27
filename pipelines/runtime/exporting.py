"""An export: checked, written, compared with PyTorch, and kept only if it computes the same."""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from esformer.checkpoint import Checkpoint
from esformer.checkpoint.loading import network_of, opened
from esformer.errors import first_line
from esformer.export import FORMATS, Difference, ExportError, compare, fold, speed_up
from esformer.export.card import METRICS, front_matter, in_words, model_card
from esformer.export.comparing import images_for
from esformer.export.exported import exported_kind
from esformer.export.formats import OPSETS, Format
from esformer.export.quantizing import Source
from esformer.files import atomic_output
from esformer.genotype import Genotype
from esformer.plots.architecture import draw_architecture
from pipelines.runtime.checkpoint import beside, check_size, evaluation_of
from pipelines.runtime.console import show
from pipelines.runtime.lineage import check_login, send_export
from pipelines.runtime.logs import start_logging
from pipelines.runtime.quantizing import LARGEST_DROP, check_options, int8_images, write_int8
from pipelines.runtime.signals import stop

log = logging.getLogger("esformer")


def run(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Open, check, write, compare, keep. Returns what was written and how far outputs are apart.

    Args:
        options: what `pipelines.export.parse` gives.
        command: which says the same, for the summary.

    Raises:
        ESFormerError: it cannot be exported like that; says what can be done.
    """
    start_logging()
    kind = FORMATS[options.to]
    check_options(options, kind)
    check(kind, options)
    if options.wandb is not None:
        check_login(options.wandb)
    if exported_kind(options.checkpoint):
        raise ExportError(f"{options.checkpoint} is an exported file, which holds a program; export its checkpoint")
    found = opened(options.checkpoint)
    if options.to == "timm-folder" and not isinstance(found.genotype, Genotype):
        raise ExportError(f"{found.path} holds a network of space {found.genotype.space}, which timm cannot build")
    out = options.out or beside(options.checkpoint, f"{'-int8' if options.quantize else ''}{kind.suffix}")
    check_place(out, kind, Path(options.checkpoint))
    img_size = options.img_size or found.img_size
    check_size(*img_size)
    network: Any = network_of(found, ema=not options.raw, img_size=img_size)
    folds = kind.is_graph and not options.no_fold
    about = describe(found, img_size, ema=not options.raw) | ({"folded": True} if folds else {})
    exported = fold(network) if folds else network
    settings = {"opset": options.opset} if options.to == "onnx" else {}
    images = int8_images(options, found, img_size) if options.quantize else None
    with stop.deferred(), atomic_output(out) as place:  # a signal within a library in C++ would end it there and then
        with importable(kind), TemporaryDirectory(dir=place.parent) as room:
            file = Path(room if images else place, out.name)
            with kind.refusals():
                kind.write(exported, about, file, **settings)
            difference = compared(network, kind, file)
            if images:
                drop = LARGEST_DROP if options.largest_drop is None else options.largest_drop
                about["quantized"] = write_int8(kind, Source(exported, file), place / out.name, about, images, drop)
        extras = write_card(place, out, kind, found, about, options, was_run=difference is not None)
    if images:
        difference = None  # that was of the graph in float32
    summary = {
        "checkpoint": str(found.path),
        "weights": about["weights"],
        "written": str(out),
        **extras,
        **({"largest_difference": difference.largest, "largest_output": difference.scale} if difference else {}),
        **(measure(network, exported) if folds and not images else {}),
        **({"quantized": about["quantized"]} if images else {}),
        "command": command,
    }
    shown = {"largest_difference": f"{difference.largest:.1e}"} if difference else {}
    show({**summary, **shown, **({"quantized": in_words(about["quantized"])} if images else {})})
    if options.wandb is not None:
        summary["sent"] = send(options, kind, out, found.digest(not options.raw), summary)
    return summary


def send(options: argparse.Namespace, kind: Format, out: Path, digest: str, summary: Mapping[str, Any]) -> str:
    """Send what was written to Weights & Biases, with its card; returns the address of its page.

    Raises:
        ESFormerError: it was not taken.
    """
    beside = [summary[name] for name in ("card", "picture") if name in summary and not kind.is_folder]
    weights = [out.with_suffix(kind.weights)] if kind.weights else []
    name = f"{options.to}{'-int8' if options.quantize else ''}-{digest}"
    address = send_export(options.wandb, name, options.checkpoint, [out, *weights, *map(Path, beside)], summary)
    print(f"sent to {address}")
    return address


@contextmanager
def importable(kind: Format) -> Iterator[None]:
    """Say it in a sentence if a package that a format needs is there and does not fit beside the others.

    Raises:
        ExportError: names the package, and the command that installs one that fits.
    """
    try:
        yield
    except ImportError as error:
        if not kind.needs:
            raise
        raise ExportError(
            f"{' and '.join(kind.needs)} cannot be imported here ({first_line(error)}); try: {kind.install}"
        ) from error


def compared(network: nn.Module, kind: Format, path: Path) -> Difference | None:
    """How far the outputs of what was written are from PyTorch's; None, with a warning, if it cannot be run here.

    Raises:
        ExportError: they are too far apart.
    """
    other = kind.read(path)
    if other is None:
        log.warning("what was written does not run on this system: it was not compared with PyTorch; its card says how")
        return None
    difference = compare(network, other)
    difference.check()
    log.info("compared with PyTorch: the largest difference is %s", difference)
    return difference


def check(kind: Format, options: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is done.

    Raises:
        ExportError: a package is missing, or an option is not for this kind or not within its range.
    """
    kind.check_packages(options.quantize)
    if options.opset is not None and options.to != "onnx":
        raise ExportError(f"--opset is for --to onnx, not for {options.to}")
    if options.opset is not None and options.opset not in OPSETS:
        raise ExportError(f"--opset is {options.opset}; it must be from {OPSETS[0]} to {OPSETS[-1]}")


def check_place(out: Path, kind: Format, checkpoint: Path) -> None:
    """Refuse a place in which something else lies, or whose name says that something else is there.

    Raises:
        ExportError: says what is in the way.
    """
    if out.name in ("", ".."):
        raise ExportError(f"--out {out} has no name; give one")
    if not kind.is_folder and out.suffix != kind.suffix:
        raise ExportError(f"{out} must end in {kind.suffix}")
    weights = [out.with_suffix(kind.weights)] if kind.weights else []
    if taken := next((path for path in (out, *weights) if checkpoint.resolve().is_relative_to(path.resolve())), None):
        raise ExportError(f"{taken} is the checkpoint itself; choose another --out")
    if kind.holds and out.exists() and not (out.is_dir() and {entry.name for entry in out.iterdir()} <= kind.holds):
        raise ExportError(f"{out} is there already and is not an export; choose another --out")
    files = [*([] if kind.holds else [out]), *weights, *([] if kind.is_folder else beside_file(out))]
    if folder := next((path for path in files if path.is_dir()), None):
        raise ExportError(f"{folder} is a folder; choose another --out")
    if weights and weights[0].exists() and not out.exists():
        raise ExportError(f"{weights[0]} is there already, without {out.name}; choose another --out")


def beside_file(out: Path) -> tuple[Path, Path]:
    """The card and the picture of an export that is a file."""
    return out.with_name(f"{out.name}.md"), out.with_name(f"{out.name}.png")


def describe(found: Checkpoint, img_size: tuple[int, int], ema: bool) -> dict[str, Any]:
    """What is known of the weights that are exported, which at another image size are not quite the checkpoint's."""
    trained = found.provenance.get("trained_img_size", list(found.img_size))
    provenance = {name: value for name, value in found.provenance.items() if name != "trained_img_size"}
    if list(img_size) != trained and not found.random:
        provenance["trained_img_size"] = trained
    return replace(found, img_size=img_size, provenance=provenance).describe(ema)


def write_card(
    place: Path,
    out: Path,
    kind: Format,
    found: Checkpoint,
    about: Mapping[str, Any],
    options: argparse.Namespace,
    was_run: bool,
) -> dict[str, str]:
    """The model card and the drawing, in the folder or beside the file; returns where they will be."""
    card, picture = (out / "README.md", out / "genotype.png") if kind.is_folder else beside_file(out)
    head = front_matter(options.license) if kind.is_folder else ""
    usage = kind.usage.format(name=json.dumps(out.name)[1:-1])  # within quotes
    evaluation = evaluated(options.checkpoint, found.digest(not options.raw), about["img_size"])
    kind_of_network = "ESFormer" if isinstance(found.genotype, Genotype) else "Network of space"
    title = f"{kind_of_network} {found.genotype.space}, genotype {found.genotype.digest}"
    drawn = draw_architecture(found.genotype, place / picture.relative_to(out.parent), title)
    limits = {"any_number": kind.any_number, "was_run": was_run}
    text = head + model_card(
        about, usage, picture.name if drawn else None, kind.is_graph, options.license, evaluation, **limits
    )
    (place / card.relative_to(out.parent)).write_text(text, encoding="utf-8")
    return {"card": str(card)} | ({"picture": str(picture)} if drawn else {})


def evaluated(checkpoint: str, digest: str, img_size: list[int]) -> dict[str, Any]:
    """The figures that `pipelines.evaluate` left beside the checkpoint, if they are of these weights at this size."""
    try:
        found = json.loads((evaluation_of(checkpoint) / "evaluation.json").read_text(encoding="utf-8"))
        figures = [found["images"], *(found[name] for name in METRICS if found.get(name) is not None)]
        if not isinstance(found["data"]["name"], str) or not all(type(value) in (int, float) for value in figures):
            return {}
        same = found["weights_digest"] == digest and [found["data"]["img_size"]] * 2 == img_size
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if same else {}


def measure(network: nn.Module, folded: nn.Module) -> dict[str, Any]:
    """What folding gains for one image on one thread of the CPU."""
    found = speed_up(network, folded, images_for(network, 1))
    log.info("batch norms folded: one image in %s", found)
    return {"ms_before_folding": found.before.ms, "ms_folded": found.after.ms, "folding_speed_up": found.ratio}
