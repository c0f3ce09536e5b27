"""Weights of an ESFormer, wherever they come from: which network they are of, and how they fit another like it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from esformer.choices import EXTENDED, SIZES, bottleneck_width, choices_of
from esformer.errors import ESFormerError
from esformer.genotype import Genotype, GenotypeError
from esformer.model.attention import Resolution, resize_biases

Weights = dict[str, Tensor]

WRAPPERS = ("_orig_mod.", "module.", "model.")
"""What torch.compile, DDP, and Lightning or timm's feature networks write before the names."""
STEM, HEAD = "stem.conv1.conv.weight", "head.weight"
BIASES = "stages.3.downsample.attn.attention_biases"
PARTS = ("stem", *(f"stages.{number}" for number in range(4)), "norm", "head")
"""Of an ESFormer; feature networks lack some."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LONGEST = 100
"""Characters of a name that a message shows."""
SHOWN = 3
"""Things that a message lists, at most."""


class WeightsError(ESFormerError):
    """Weights that are not of the network that they should be of; says which block differs, and how."""


@dataclass(frozen=True)
class Origin:
    """The network that weights are of, as far as their shapes tell.

    Args:
        genotype: the architecture.
        num_classes: outputs of the classifier; 0 if there is none.
        in_chans: channels of the image.
        img_size: height and width of the image in pixels, if it was square; else they cannot be told, and it is None.
    """

    genotype: Genotype
    num_classes: int
    in_chans: int
    img_size: tuple[int, int] | None


def clean(state: Mapping[str, Any]) -> Weights:
    """The weights under the names that an ESFormer has for them, whatever it was wrapped in.

    The two classifiers of timm's EfficientFormerV2, of whose outputs it takes the mean, become one.

    Raises:
        WeightsError: they are no weights of an ESFormer.
    """
    weights = {plain(str(name)): value for name, value in state.items()}
    if STEM not in weights:
        names = ", ".join(repr(name)[:LONGEST] for name in list(state)[:SHOWN]) or "nothing"
        raise WeightsError(f"it holds no weights of an ESFormer but {names}{' ...' if len(state) > SHOWN else ''}")
    check_sound(weights, "an ESFormer")
    for kind in ("weight", "bias"):
        if (second := weights.pop(f"head_dist.{kind}", None)) is not None:
            weights[f"head.{kind}"] = (weights[f"head.{kind}"] + second) / 2
    return weights


def check_sound(weights: Mapping[str, Any], network: str) -> None:
    """Refuse what cannot be the weights of any network.

    Args:
        weights: by their names.
        network: whose they are said to be.

    Raises:
        WeightsError: says which of them is not.
    """
    for name, value in weights.items():
        if why := flaw(name, value):
            raise WeightsError(f"it holds no weights of {network}: {name[:LONGEST]!r} {why}")
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in weights.values()}
    if sum(value.nbytes for value in weights.values()) > sum(storages.values()):
        raise WeightsError(
            f"it holds no weights of {network}: they share memory, and would need more than the file has"
        )


def flaw(name: str, value: Any) -> str:
    """What keeps something from being a weight or a running statistic of a network; nothing, if it can be one."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__} and no tensor"
    if value.layout != torch.strided or value.is_nested:
        return f"is a tensor of another layout ({value.layout})"
    if value.is_meta or value.is_quantized:
        return f"is a tensor {'without numbers' if value.is_meta else 'of quantised numbers'}"
    counts = name.endswith("num_batches_tracked")
    if value.dtype not in ((torch.int64,) if counts else FLOATS):
        return f"is of {value.dtype}; it must be {'of torch.int64' if counts else 'of real floating-point numbers'}"
    if value.untyped_storage().nbytes() < value.nbytes:  # a small file could ask for any amount of memory
        return f"claims to have {value.numel():,} numbers, and does not"
    return ""


def plain(name: str) -> str:
    """A weight's name in an ESFormer, without what wrappers and timm's feature networks make of it."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return re.sub(r"^(stem|stages)_", r"\1.", name)


def origin(weights: Mapping[str, Tensor]) -> Origin:
    """The network that cleaned weights are of.

    Raises:
        WeightsError: there is no such network in any of the search spaces.
    """
    depths = [_depth(weights, stage) for stage in range(4)]
    sizes = {tuple((stage.blocks, stage.transformers) for stage in choices_of(size).stages): size for size in SIZES}
    if (size := sizes.get(tuple(depths))) is None:
        found = ", ".join(f"{blocks} blocks ({layers} of them Transformer layers)" for blocks, layers in depths)
        raise WeightsError(f"it holds a network of no known size: its stages have {found}")
    genes = [[_genes(weights, s, b) for b in range(blocks)] for s, (blocks, _) in enumerate(depths)]
    stages = [[{gene: values[0] for gene, values in block.items()} for block in stage] for stage in genes]
    extended = any(block["ffn"] == "bottleneck" for stage in stages for block in stage)
    space = size + EXTENDED * extended
    for s, stage in enumerate(stages):  # the kernel of a Transformer layer is no gene
        for b, block in enumerate(stage):
            stage[b] = {gene: block[gene] for gene in choices_of(space).options[s][b]}
    try:
        genotype = Genotype.from_dict({"genotype": 1, "space": space, "stages": stages})
    except GenotypeError as error:
        raise WeightsError(f"it holds a network that is in no search space: {error}") from None
    classes = weights[HEAD].shape[0] if HEAD in weights else 0
    return Origin(genotype, classes, weights[STEM].shape[1], _square(weights))


def check(weights: Mapping[str, Tensor], genotype: Genotype) -> None:
    """Refuse weights of another architecture.

    Raises:
        WeightsError: names the first blocks in which they differ, and their genes.
    """
    wrong = []
    for s, stage in enumerate(genotype.stages):
        blocks, _ = _depth(weights, s)
        if blocks == 0:  # feature networks lack stages
            continue
        if blocks != len(stage):
            wrong.append(f"stage {s + 1} has {len(stage)} blocks in the genotype and {blocks} in the weights")
            continue
        for b, block in enumerate(stage):
            there = _genes(weights, s, b)
            for gene, value in block.genes().items():
                if value not in there.get(gene, ()):
                    known = f"{there[gene][0]} in the weights" if gene in there else "none in the weights"
                    wrong.append(f"stage {s + 1}, block {b + 1}: {gene} is {value} in the genotype and {known}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsError(f"its weights are not of its genotype: {'; '.join(wrong[:SHOWN])}{more}")


def check_size(weights: Mapping[str, Tensor], img_size: tuple[int, int]) -> None:
    """Refuse weights for images of another size.

    Raises:
        WeightsError: their attention is for another number of positions.
    """
    _resolution(BIASES, weights[BIASES], img_size, (0, 0))


def fit(weights: Weights, network: nn.Module, img_size: tuple[int, int] | None = None) -> tuple[Weights, list[str]]:
    """Weights for all that a network has, and in words what was replaced because the network differs from theirs.

    Another image size interpolates the attention biases; other channels adapt the first convolution as timm does;
    another number of classes leaves the classifier of the network as it is. The network may be an ESFormer or timm's
    feature network of one, which has no classifier; it is not changed.

    Args:
        weights: cleaned.
        network: what is to have them.
        img_size: of the images that the weights are for; None takes them for square, where not of the network's size.

    Raises:
        WeightsError: anything else differs.
    """
    if isinstance(genotype := getattr(network, "genotype", None), Genotype):
        check(weights, genotype)
    fitted: Weights = {}
    told = []
    mine = network.state_dict()
    new = _new_classifier(weights, {plain(name): own for name, own in mine.items()})
    if "norm.weight" in mine and not any(name.startswith("norm.") for name in weights):
        raise WeightsError("it holds a feature network, which opens with features_only=True")
    for name, own in mine.items():
        short = plain(name)
        theirs = weights.get(short)
        if new and short.startswith("head."):
            theirs = own
        elif short == STEM and theirs is not None and theirs.shape[1] != own.shape[1]:
            theirs, how = _other_channels(theirs, own)
            told.append(how)
        elif short.endswith("attention_biases") and theirs is not None:
            module: Any = network.get_submodule(name.rpartition(".")[0])
            old = _resolution(short, theirs, img_size, module.table)
            if old != module.table:
                theirs = resize_biases(theirs, old, module.table)
                told.append("attention biases interpolated for another image size")
        if theirs is None or theirs.shape != own.shape:
            raise WeightsError(_mismatch(short, theirs, own))
        fitted[name] = theirs
    parts = {_part(plain(name)) for name in mine}
    unused = weights.keys() - set(map(plain, mine))
    if strange := sorted(name for name in unused if _part(name) in parts or _part(name) not in PARTS):
        raise WeightsError(_mismatch(strange[0], weights[strange[0]], None))
    return fitted, list(dict.fromkeys([*told, *filter(None, [new])]))


def _new_classifier(weights: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> str:
    """What is to be said of a classifier that the weights have not, or not like this; nothing if they have it."""
    own = {name: value for name, value in mine.items() if name.startswith("head.")}
    if all(name in weights and weights[name].shape == value.shape for name, value in own.items()):
        return ""
    before = f"in place of the {len(weights[HEAD])} there" if HEAD in weights else "for there is none"
    return f"a new classifier of {len(own[HEAD])} classes, {before}"


def _part(name: str) -> str:
    """The part of the network that a weight is in."""
    return ".".join(name.split(".")[: 2 if name.startswith("stages.") else 1])


def _depth(weights: Mapping[str, Tensor], stage: int) -> tuple[int, int]:
    """Blocks of a stage, and how many of them are Transformer layers."""
    names = [re.match(rf"stages\.{stage}\.blocks\.(\d+)\.(\w+)\.", name) for name in weights]
    found = [match.groups() for match in names if match]
    return len({block for block, _ in found}), len({block for block, part in found if part == "token_mixer"})


def _genes(weights: Mapping[str, Tensor], stage: int, block: int) -> dict[str, tuple[Any, ...]]:
    """The values that each gene of a block may have had; several only where they make the same network."""
    prefix = f"stages.{stage}.blocks.{block}"

    def shape(name: str) -> tuple[int, ...]:
        weight = weights.get(f"{prefix}.{name}.weight")
        if weight is None or weight.ndim != 4:
            raise WeightsError(
                f"it holds no weights of an ESFormer: {prefix}.{name}.weight is missing or no convolution"
            )
        return tuple(weight.shape)

    (hidden, chs, *_), (middle, group, kernel, _), (out, *_) = map(
        shape, ("mlp.fc1.conv", "mlp.mid.conv", "mlp.fc2.conv")
    )
    if group > 1:
        ffn, ratios = "bottleneck", [r for r in choices_of(f"S0{EXTENDED}").ratio if bottleneck_width(out, r) == hidden]
    else:
        ffn, ratios = "ibn" if middle == hidden else "convnext", [hidden // chs] * (hidden % chs == 0)
    genes: dict[str, tuple[Any, ...]] = {"ffn": (ffn,), "kernel": (kernel,), "out": (out,)}
    genes["ratio"] = tuple(ratios) or (round(hidden / chs, 2),)
    if f"{prefix}.token_mixer.q.conv.weight" in weights:
        heads = shape("token_mixer.talking_head1")[0]
        genes |= {"heads": (heads,), "head_dim": (shape("token_mixer.q.conv")[0] // heads,)}
    return genes


def _square(weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    biases = weights.get(BIASES)
    if biases is None or biases.ndim != 2:
        raise WeightsError(f"it holds no weights of an ESFormer: {BIASES} is missing")
    side = math.isqrt(biases.shape[1])
    return (16 * side, 16 * side) if side * side == biases.shape[1] else None


def _resolution(name: str, biases: Tensor, img_size: tuple[int, int] | None, new: Resolution) -> Resolution:
    """The resolution that attention biases are for."""
    count = biases.shape[-1]
    if img_size is not None:
        height, width = _at(name, img_size)
    elif count == math.prod(new):
        height, width = new
    else:
        height = width = math.isqrt(count)
    if biases.ndim != 2 or height * width != count:
        images = "{} x {} pixels".format(*img_size) if img_size else "a square shape"
        raise WeightsError(f"{name} is for {count} positions, which are not those of images of {images}")
    return height, width


def _at(name: str, img_size: tuple[int, int]) -> Resolution:
    """The resolution of an attention's keys, which in the last downsampling are not halved yet."""
    stride = 16 if "downsample" in name else 32
    return math.ceil(img_size[0] / stride), math.ceil(img_size[1] / stride)


def _other_channels(theirs: Tensor, own: Tensor) -> tuple[Tensor, str]:
    before, now = theirs.shape[1], own.shape[1]
    if before == 3:  # what timm's rule is made for
        return adapt_input_conv(now, theirs), f"the first convolution adapted from {before} to {now} channels"
    return own, f"a new first convolution for {now} channels, in place of that for {before}"


def _mismatch(name: str, theirs: Tensor | None, own: Tensor | None) -> str:
    match = re.match(r"stages\.(\d)\.(?:blocks\.(\d+))?", name)
    block = f", block {int(match[2]) + 1}" if match and match[2] else ""
    where = f"stage {int(match[1]) + 1}{block}: " if match else ""
    sizes = [" x ".join(map(str, one.shape)) or "one number" if one is not None else "missing" for one in (theirs, own)]
    return f"its weights are of another network: {where}{name} is {sizes[0]} there and {sizes[1]} in this network"


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> Weights:
    """Weights of an ESFormer or an EfficientFormerV2 for a model of timm's builder, which sees to classes and channels.

    It has the name and the signature of the filters of timm's models.
    """
    weights = clean(state_dict)
    size = tuple(getattr(model, "pretrained_cfg", {}).get("input_size", ())[1:])
    for name, value in weights.items():
        if name.endswith("attention_biases"):
            attention: Any = model.get_submodule(name.rpartition(".")[0])
            table = attention.table
            known = size if size and value.shape[-1] == math.prod(_at(name, size)) else None
            weights[name] = resize_biases(value, _resolution(name, value, known, table), table)
    return weights
