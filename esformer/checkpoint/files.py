"""Each kind of weights file, read without executing anything in it.

A checkpoint of the training, a safetensors file, a folder as timm and the Hugging Face hub have them, and files of
weights alone, such as timm's: what these do not say is read off the shapes of the weights.
"""

import argparse
import errno
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.trained import architecture_of
from esformer.checkpoint.archive import check_archive
from esformer.checkpoint.content import DIGEST, KEY, Checkpoint, CheckpointError, digest_of
from esformer.checkpoint.other_spaces import fitting
from esformer.checkpoint.versions import FORMAT, is_known, upgrade
from esformer.data.base import DataError
from esformer.data.datasets import LARGEST_IMAGE, check_preparation
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.esformer import MIN_IMAGE
from esformer.model.weights import Origin, Weights, WeightsError, check, check_size, clean, origin

AVERAGED, RAW = ("state_dict_ema", "model_ema"), ("state_dict", "model")
"""Where timm's scripts keep weights; ours use the first names."""
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
SHOWN = 200
"""Characters of what Python says of a file that is not as it should be."""
MOST = 2**63
"""No integer in a file is as large; floats could not hold some, nor Python print them."""
PREPARATION = ("mean", "std", "interpolation", "crop_pct")
"""What timm's config.json says of the images in the words that we use."""


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """What is in a weights file of any kind, or in a folder as timm saves models.

    Raises:
        CheckpointError: it cannot be read, holds no ESFormer, or not the one that it says. Nothing in it is executed.
    """
    path = Path(path)
    with _in_a_sentence(path):
        config: Mapping[str, Any] = {}
        if path.is_dir():
            path, config = _in_folder(path), _config(path)
        _refuse_others(path)
        if path.suffix == ".safetensors":
            return _safetensors(path, config)
        content = _unpickled(path)
        if "hyper_parameters" in content:
            return _training(path, _checked(path, content))
        averaged, raw = (next((content[key] for key in keys if key in content), None) for keys in (AVERAGED, RAW))
        if averaged is None and raw is None:
            raw = content  # weights alone
        raw, averaged = (None if weights is None else clean(weights) for weights in (raw, averaged))
        return _unknown(path, raw, averaged, config)


def described(path: Path, text: str) -> dict[str, Any]:
    """The fields of a `Checkpoint` but its weights, of a file that holds a network in another form.

    Args:
        path: the file.
        text: what it says of the network: `Checkpoint.describe` as JSON.

    Raises:
        CheckpointError: that is not as this or an earlier version writes it.
    """
    with _in_a_sentence(path):
        about = json.loads(text)
        _refuse_newer(path, about)
        classes, chans = (int(about[name]) for name in ("num_classes", "in_chans"))
        return dict(
            path=path,
            genotype=architecture_of(about["genotype"]),
            num_classes=classes,
            in_chans=chans,
            img_size=_pair(about["img_size"]),
            version=about.get("version"),
            random=about["weights"] == "random",
            **_described(path, about, classes),
        )


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Say of whatever a file's content leads to that the file cannot be read, and why."""
    try:
        yield
    except CheckpointError:
        raise
    except ESFormerError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:SHOWN]
        raise CheckpointError(f"{path} is not as this or an earlier version of esformer writes it: {reason}") from None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint that the training wrote, as it is there but for its format.

    Raises:
        CheckpointError: the file cannot be read, or holds something else. Nothing in it is executed.
    """
    path = Path(path)
    _refuse_others(path)
    return _checked(path, _unpickled(path))


def _refuse_others(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        check_archive(path)
        # timm's scripts keep their arguments; PyTorch warns of pickles that are none of its own
        with safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which PyTorch makes of half a file
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        raise CheckpointError(f"{path} {_refusal(path, error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no weights but a {type(content).__name__}")
    return content


def _refusal(path: Path, error: Exception) -> str:
    """Why PyTorch would not open a file."""
    try:
        foreign = [name for name in get_unsafe_globals_in_checkpoint(path) if name != "argparse.Namespace"]
    except Exception:  # not even a pickle
        foreign = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return f"is not opened, because it holds code or objects ({', '.join(foreign[:3])}) and not weights alone"
    return "is damaged, or is no file of weights"


def _checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    settings = content.get("hyper_parameters")
    known = isinstance(settings, dict) and {"genotype", "num_classes", "img_size"} <= settings.keys()
    if not known or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a checkpoint of an ESFormer's training")
    try:
        return upgrade(content)
    except ESFormerError as error:
        raise CheckpointError(f"{path} {error}") from None


def _training(path: Path, content: dict[str, Any]) -> Checkpoint:
    network = {name: value for name, value in content["state_dict"].items() if name.startswith("model.")}
    averaged = content.get("state_dict_ema")
    about = content["hyper_parameters"] | {name: content[name] for name in ("metrics", "data")}
    if _of_other_space(about):
        raw = {name.removeprefix("model."): value for name, value in network.items()}
        return _known_of_other_space(path, about, raw, averaged)
    return _known(path, about, clean(network), averaged and clean(averaged))


def _tensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """The weights of a safetensors file, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError:
        raise CheckpointError(f"{path} is damaged, or is no safetensors file") from None
    if DIGEST in metadata and metadata[DIGEST] != digest_of(stored, metadata):
        raise CheckpointError(f"{path} is damaged: its weights or what it says of them are not as they were written")
    return stored, metadata


def _safetensors(path: Path, config: Mapping[str, Any]) -> Checkpoint:
    weights, metadata = _tensors(path)
    if KEY not in metadata:
        return _unknown(path, clean(weights), None, config)
    about = json.loads(metadata[KEY])
    _refuse_newer(path, about)
    if about["weights"] not in ("averaged", "raw", "random"):
        raise CheckpointError(f"{path} does not say whether its weights are averaged, raw or random")
    averaged = about["weights"] == "averaged"
    known = _known_of_other_space if _of_other_space(about) else _known
    weights = weights if _of_other_space(about) else clean(weights)
    return known(path, about, None if averaged else weights, weights if averaged else None)


def _refuse_newer(path: Path, about: Mapping[str, Any]) -> None:
    if not is_known(about["format"]):
        raise CheckpointError(
            f"{path} is of format {about['format']!r}, and 1 to {FORMAT} are known here: update esformer"
        )


def _config(folder: Path) -> dict[str, Any]:
    """What timm's config.json says, in the words that we use."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is not JSON") from None
    said = {**config, **config.get("pretrained_cfg", {})}
    data = {word: said[word] for word in PREPARATION if word in said}
    if said.get("label_names"):
        data["classes"] = said["label_names"]
    size = config.get("model_args", {}).get("img_size") or said.get("input_size", ())[1:]
    return {"data": data, "img_size": size or None}


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    last = folder / "checkpoints" / "last.ckpt"
    hint = f"; it is a run's folder, whose weights are {last}" if last.exists() else ""
    raise CheckpointError(f"{folder} holds neither {' nor '.join(IN_FOLDER)}{hint}")


def _known(path: Path, about: Mapping[str, Any], raw: Weights | None, averaged: Weights | None) -> Checkpoint:
    """With its own word for what it is, which its weights must bear out."""
    genotype = Genotype.from_dict(about["genotype"])
    for weights in (raw, averaged):
        if weights is not None:
            check(weights, genotype)
    told, size = _origin(raw, averaged, _pair(about["img_size"]))
    return Checkpoint(
        path=path,
        genotype=genotype,
        num_classes=told.num_classes,
        in_chans=told.in_chans,
        img_size=size,
        raw=raw,
        averaged=averaged,
        version=about.get("version"),
        random=about.get("weights") == "random",
        **_described(path, about, told.num_classes),
    )


def _of_other_space(about: Mapping[str, Any]) -> bool:
    return isinstance(about["genotype"], dict) and "architecture" in about["genotype"]


def _known_of_other_space(
    path: Path, about: Mapping[str, Any], raw: Weights | None, averaged: Weights | None
) -> Checkpoint:
    """The same of a network that its own space builds, so that names and shapes are all that can be compared."""
    architecture, size, classes = architecture_of(about["genotype"]), _pair(about["img_size"]), about["num_classes"]
    assert isinstance(architecture, GeneArchitecture)
    if size[0] != size[1]:
        raise WeightsError(f"it is for images of {size[0]} x {size[1]} pixels; networks of other spaces take squares")
    raw, averaged = (weights and fitting(weights, architecture, size[0], classes) for weights in (raw, averaged))
    return Checkpoint(
        path=path,
        genotype=architecture,
        num_classes=classes,
        in_chans=3,
        img_size=size,
        raw=raw,
        averaged=averaged,
        version=about.get("version"),
        random=about.get("weights") == "random",
        **_described(path, about, classes),
    )


def _unknown(path: Path, raw: Weights | None, averaged: Weights | None, config: Mapping[str, Any]) -> Checkpoint:
    """Weights that say nothing of themselves; perhaps there is a config.json beside them."""
    said = config.get("img_size")
    told, size = _origin(raw, averaged, said and _pair(said))
    described = _described(path, config, told.num_classes)
    return Checkpoint(path, told.genotype, told.num_classes, told.in_chans, size, raw, averaged, **described)


def _origin(
    raw: Weights | None, averaged: Weights | None, size: tuple[int, int] | None
) -> tuple[Origin, tuple[int, int]]:
    """What both kinds of weights tell of their network, and for images of what size they are, which they bear out."""
    weights = raw or averaged or {}
    told = origin(weights)
    if raw and averaged and {n: w.shape for n, w in raw.items()} != {n: w.shape for n, w in averaged.items()}:
        raise WeightsError("its raw and its averaged weights are of different networks")
    size = size or told.img_size
    if size is None:
        raise WeightsError("it does not say for images of what height and width its weights are")
    check_size(weights, size)
    return told, size


def _described(path: Path, about: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """What a file says of its weights beside their network, if it is as it should be."""
    said = {name: about.get(name) or {} for name in ("recipe", "data", "metrics", "provenance")}
    wrong = next((name for name, value in said.items() if not isinstance(value, dict)), None)
    if wrong is None:
        data, classes = said["data"], said["data"].get("classes", [])
        trained = said["provenance"].get("trained_img_size")
        _check_preparation(path, data)
        right = {
            "data.name": isinstance(data.get("name", ""), str),
            "data.classes": isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
            and (not classes or num_classes in (0, len(classes))),
            "metrics": _are_numbers([*said["metrics"].values(), 0]),
            "provenance": _is_plain(said) and (trained is None or bool(_pair(trained))),
        }
        wrong = next((name for name, is_right in right.items() if not is_right), None)
    if wrong is not None or not isinstance(about.get("version"), str | None):
        raise CheckpointError(
            f"{path} says what cannot be of its weights: {wrong or 'version'} is not as esformer writes it"
        )
    return said


def _check_preparation(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse what images cannot be prepared with; what a file does not say is not asked for."""
    chans = len(data["mean"] if isinstance(data.get("mean"), list | tuple) else data.get("std", [0] * 3))
    unsaid = {"mean": [0.0] * chans, "std": [1.0] * chans, "interpolation": "bicubic", "crop_pct": 1.0}
    said = unsaid | {word: data[word] for word in PREPARATION if word in data}
    try:
        check_preparation(**said, channels=None)
    except DataError as error:
        raise CheckpointError(f"{path} says what cannot be of its weights: data.{str(error)[:SHOWN]}") from None


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether they are numbers that a float can hold; they may be infinite, as a loss."""
    return all(type(value) is float or (type(value) is int and abs(value) < MOST) for value in values)


def _is_plain(value: Any) -> bool:
    """Whether it can be kept beside weights that are saved alone."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    for pixels in (height, width):
        if type(pixels) is not int or not MIN_IMAGE <= pixels <= LARGEST_IMAGE:
            shown = f"{pixels:,}" if type(pixels) is int and abs(pixels) < MOST else type(pixels).__name__
            raise WeightsError(
                f"it says that its images have {shown} pixels; they must be whole numbers of {MIN_IMAGE} to"
                f" {LARGEST_IMAGE:,}"
            )
    return height, width
