"""The shipped ESFormers as timm models: import this, and `timm.create_model("esformer_s0")` works."""

import logging
import os
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import is_scriptable, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from esformer.data.datasets import check_preparation
from esformer.genotype import Genotype, GenotypeError
from esformer.model.esformer import ESFormer
from esformer.model.weights import WeightsError, checkpoint_filter_fn, clean, fit

log = logging.getLogger("esformer")

HINT = "esformer.load(file) builds the network of a file, and create_model(..., genotype=...) that of a genotype"


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.conv",
        "classifier": "head",
        **kwargs,
    }


NAMES = ("esformer_s0", "esformer_s0_paper", "esformer_s1", "esformer_s2")
default_cfgs = generate_default_cfgs({name: _cfg() for name in NAMES})


def _create_esformer(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build with timm; `genotype` is a Genotype, its `to_dict`, or a file of one; by default the shipped one.

    Feature networks take images of any size, but those made for TorchScript (`scriptable=True`) or with torch.fx
    (`feature_cls="fx"`). Weights that timm's `create_model(checkpoint_path=...)` loads are fitted to the network, as
    `esformer.load` does.
    """
    genotype = _genotype(variant, kwargs.pop("genotype", None), kwargs.get("pretrained_cfg"))
    if kwargs.get("features_only"):
        kwargs.setdefault("dynamic_img_size", not is_scriptable() and kwargs.get("feature_cls") != "fx")
    network = build_model_with_cfg(
        ESFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), flatten_sequential=True),
        genotype=genotype,
        **kwargs,
    )
    network.genotype = genotype  # a feature network has none
    _describe(network.pretrained_cfg, **kwargs)
    network.register_load_state_dict_pre_hook(_fit)
    return network


def _genotype(variant: str, given: Any, cfg: Any) -> Genotype:
    """The genotype of a network; that of a folder or of the hub stands in its config.json, which may name no file."""
    if isinstance(given, Genotype) or not given:
        return given or Genotype.shipped(variant)
    if isinstance(given, dict):
        return Genotype.from_dict(given)
    source = cfg.get("source") if isinstance(cfg, dict) else getattr(cfg, "source", None)
    if source or not isinstance(given, str | os.PathLike):
        raise GenotypeError("the genotype of a saved model is no dictionary; give create_model a Genotype of your own")
    return Genotype.load(given)


def _describe(cfg: dict[str, Any], dynamic_img_size: bool = False, **kwargs: Any) -> None:
    """Have a network's own configuration speak of images as it was built for, where timm's speaks of its weights.

    From it timm's `resolve_model_data_config` takes how images are prepared. For other channels their mean and standard
    deviation are averaged, as timm's scripts do.

    Raises:
        DataError: no image can be prepared as it says; it may come from somebody's config.json.
    """
    check_preparation(cfg["mean"], cfg["std"], cfg["interpolation"], cfg["crop_pct"], None)
    chans, *size = cfg["input_size"]
    chans, size = kwargs.get("in_chans", chans), to_2tuple(kwargs.get("img_size", size))
    if tuple(size) != tuple(cfg["input_size"][1:]):
        cfg["pool_size"] = None
    cfg |= {"input_size": (chans, *size), "fixed_input_size": not dynamic_img_size}
    for word in ("mean", "std"):
        if len(cfg[word]) != chans:
            cfg[word] = (sum(cfg[word]) / len(cfg[word]),) * chans


def _fit(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: make them those of this very network, if they are not, or a part of them."""
    if prefix:  # this is a part of another network, which has its own ways
        return
    own = network.state_dict()
    if all(name in own and own[name].shape == getattr(value, "shape", None) for name, value in state_dict.items()):
        return
    try:
        fitted, told = fit(clean(state_dict), network)
    except WeightsError as error:
        raise WeightsError(f"{error}; {HINT}") from None
    if told:
        log.warning("weights loaded: %s", "; ".join(told))
    state_dict.clear()
    state_dict.update(fitted)


@register_model
def esformer_s0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The ESFormer found for 3.5 million parameters."""
    return _create_esformer("esformer_s0", pretrained, **kwargs)


@register_model
def esformer_s0_paper(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The ESFormer that the paper's search found for 3.5 million parameters, whatever its MACs."""
    return _create_esformer("esformer_s0_paper", pretrained, **kwargs)


@register_model
def esformer_s1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The ESFormer found for 6 million parameters."""
    return _create_esformer("esformer_s1", pretrained, **kwargs)


@register_model
def esformer_s2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The ESFormer found for 12.5 million parameters."""
    return _create_esformer("esformer_s2", pretrained, **kwargs)
