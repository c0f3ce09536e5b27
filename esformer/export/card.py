"""The model card: what a network is, what it reached, where it comes from and what is not known of it, in Markdown."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCardData

from esformer.benchmarks.trained import architecture_of, price
from esformer.export.metadata import of_channels
from esformer.text import printable

UNKNOWN = "not recorded"
METRICS = {"top1": "top-1", "top5": "top-5", "loss": "cross-entropy", "calibration_error": "calibration error"}
SHOWN_CLASSES = 20
LONGEST = 2500
"""Characters of a value that are shown."""
PAPER = "*Entropic Score metric: Decoupling Topology and Size in Training-free NAS*"


def model_card(
    about: Mapping[str, Any],
    usage: str,
    picture: str | None,
    is_graph: bool,
    license: str | None = None,
    evaluation: Mapping[str, Any] = {},
    any_number: bool = True,
    was_run: bool = True,
) -> str:
    """The card as Markdown. What is not known is said to be unknown, never guessed.

    Args:
        about: as `Checkpoint.describe` gives it.
        usage: a few lines of Python that give the network.
        picture: the file that it is drawn in, as seen from the card; None if it is not.
        is_graph: whether it is a graph of one image size, not weights that fit others.
        license: of the weights, as its owner names it; None if nothing is known of one.
        evaluation: figures of `pipelines.evaluate` by their names.
        any_number: whether it takes any number of images, not one at a time.
        was_run: whether what was written was run and compared with PyTorch.
    """
    parts = [
        f"# {_title(about)}",
        _kind(about),
        _table(_facts(about)),
        *([f"![the network, block by block]({quote(os.fsencode(picture))})"] if picture is not None else []),
        "## Use",
        f"```python\n{usage}\n```",
        _preparation(about, "B" if any_number else "1"),
        "## Accuracy",
        _accuracy(about, evaluation),
        "## Training",
        _training_images(about),
        _table(about["recipe"]) if about["recipe"] else f"Recipe: {UNKNOWN}.",
        "## Provenance",
        _table(_flat(about["provenance"])) if about["provenance"] else f"Where the genotype comes from is {UNKNOWN}.",
        "## Licence",
        printable(license or "") or "Not stated. Ask whoever gave you this file what you may do with it.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(about, is_graph, bool(evaluation), any_number, was_run)),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(license: str | None) -> str:
    """What the Hugging Face hub reads at the head of a card."""
    facts = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "esformer", "neural-architecture-search"],
        license=license or "unknown",
    )
    return f"---\n{facts.to_yaml()}\n---\n\n"


def _title(about: Mapping[str, Any]) -> str:
    space, classes = about["genotype"]["space"], about["num_classes"]
    name = f"Network of space {_text(space)}, " if _of_other_space(about) else f"ESFormer {space}, "
    return name + (f"{classes:,} classes" if classes else "no classifier")


def _of_other_space(about: Mapping[str, Any]) -> bool:
    return "architecture" in about["genotype"]


def _kind(about: Mapping[str, Any]) -> str:
    if _of_other_space(about):
        architecture = _text(about["genotype"]["architecture"])
        return f"A network for image classification, {_weights(about)}. Its architecture is {architecture}."
    return (
        f"A hybrid Transformer (convolutions, then attention) for image classification, {_weights(about)}. Its"
        f" architecture comes from the search space of {PAPER}."
    )


def _weights(about: Mapping[str, Any]) -> str:
    return {
        "averaged": "with the moving average of its weights",
        "raw": "with its weights as the training left them",
        "random": "with random weights: it was never trained",
    }[about["weights"]]


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    height, width = about["img_size"]
    genotype = architecture_of(about["genotype"])
    costs = price(genotype, (height, width), about["num_classes"], about["in_chans"])
    classes = about["data"].get("classes", [])
    named = ", ".join(printable(name, 100) for name in classes[:SHOWN_CLASSES]) + (
        ", ..." if len(classes) > SHOWN_CLASSES else ""
    )
    arithmetic = {"arithmetic": in_words(about["quantized"])} if "quantized" in about else {}
    return {
        "parameters": f"{costs.params:,}",
        "multiply-accumulates of one image": f"{costs.macs:,}",
        "image": f"{height} x {width} pixels, {about['in_chans']} channels",
        "classes": f"{about['num_classes']:,}: {named or f'names {UNKNOWN}'}" if about["num_classes"] else "none",
        "search space": genotype.space,
        "genotype": genotype.digest,
        **arithmetic,
        "code": f"esformer {about['version']}" if about["version"] else UNKNOWN,
    }


def _preparation(about: Mapping[str, Any], batch: str) -> str:
    (height, width), chans = about["img_size"], about["in_chans"]
    shape = f"`images` are float32, {batch} x {chans} x {height} x {width}"
    data = about["data"]
    if not {"mean", "std", "interpolation", "crop_pct"} <= data.keys():
        return f"{shape}. How they were prepared is {UNKNOWN}."
    mean, std = (_show(of_channels(data[word], chans)) for word in ("mean", "std"))
    return (
        f"{shape}: resized ({data['interpolation']}), the central {data['crop_pct']:.0%} of each side kept, values"
        f" from 0 to 1, mean {mean} subtracted, divided by {std}."
    )


def in_words(quantized: Mapping[str, Any]) -> str:
    """What an export in int8 is and reaches.

    Args:
        quantized: what was done, as the pipeline says it.
    """
    q, size = quantized, quantized["int8_bytes"] / quantized["float32_bytes"]
    return (
        f"weights (a scale a channel) and activations int8, calibrated on {q['calibration_images']:,} training images;"
        f" in float: {', '.join(q['float']) or 'no part that was tried'}. Top-1 of {q['images']:,} validation"
        f" images: {q['int8_top1']:.2%}, {q['float32_top1']:.2%} in float32. {q['int8_bytes']:,} bytes, {size:.0%} of"
        " float32's"
    )


def _accuracy(about: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    if about["weights"] == "random":
        return "None: the weights are random."
    prefix = "val/ema_" if about["weights"] == "averaged" else "val/"
    logged = {name: about["metrics"][prefix + name] for name in METRICS if prefix + name in about["metrics"]}
    texts = []
    if logged:
        where = f"the validation images of {_text(about['data'].get('name', 'a data set whose name is ' + UNKNOWN))}"
        texts.append(f"On {where}, at {_trained_size(about)}, as the training logged it:\n\n{_figures(logged)}")
    if evaluation:
        images = f"{evaluation['images']:,} validation images of {_text(evaluation['data']['name'])}"
        texts.append(f"By `pipelines.evaluate`, on {images}:\n\n{_figures(evaluation)}")
    texts = [f"{text}\n\nThat is of float32." for text in texts] if "quantized" in about else texts
    return "\n\n".join(texts) or f"Top-1 and top-5 are {UNKNOWN}."


def _figures(found: Mapping[str, Any]) -> str:
    shown = {name: found[name] for name in METRICS if found.get(name) is not None}
    return _table({METRICS[n]: f"{value:.2%}" if n != "loss" else f"{value:.4f}" for n, value in shown.items()})


def _training_images(about: Mapping[str, Any]) -> str:
    name = _text(about["data"].get("name", UNKNOWN))
    return f"Images: {name}, at {_trained_size(about)}." if about["weights"] != "random" else "None."


def _trained_size(about: Mapping[str, Any]) -> str:
    height, width = about["provenance"].get("trained_img_size", about["img_size"])
    return f"{height} x {width} pixels"


def _limits(
    about: Mapping[str, Any], is_graph: bool, evaluated: bool, any_number: bool, was_run: bool
) -> Iterator[str]:
    height, width = about["img_size"]
    number = "any number" if any_number else "one"
    if not was_run:
        yield "It was converted and not run: its outputs were never compared with PyTorch's. The lines above do so."
    other = "needs another export" if is_graph else "is asked for with `img_size`, and interpolates attention biases"
    other = "needs another training" if _of_other_space(about) else other
    yield f"It takes images of {height} x {width} pixels, {number} at a time; another size {other}."
    if about.get("folded"):
        yield "Batch norms are folded into the convolutions: it is for inference, not to be trained on."
    if about["weights"] == "random":
        yield "Its outputs mean nothing; it shows what the network costs in time and memory."
        return
    if "trained_img_size" in about["provenance"]:
        here = "." if evaluated else ", and its accuracy here was not measured."
        yield f"Trained on images of {_trained_size(about)}, it has attention biases interpolated to this size{here}"
    if not about["metrics"] and not evaluated:
        yield f"Its accuracy is {UNKNOWN}."
    name = _text(about["data"].get("name", UNKNOWN))
    yield (
        "It knows its classes alone, and gives one of them for any image. How it does on other images than those"
        f" it was trained on ({name}), on distorted ones, or on different groups of"
        " people was not measured."
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    return _text(_show(value))


def _text(text: str) -> str:
    """What comes from data, as text and nothing else: no HTML, link, image, code, emphasis or cell of a table."""
    shown = printable(text.replace("\n", " "), LONGEST).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", shown)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_show, value))
    return str(value)
