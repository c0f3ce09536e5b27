"""The shipped ESFormers as timm models: import this, and `timm.create_model("esformer_s0")` works."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer, checkpoint_filter_fn


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


default_cfgs = generate_default_cfgs({"esformer_s0": _cfg(), "esformer_s1": _cfg(), "esformer_s2": _cfg()})


def _create_esformer(variant: str, pretrained: bool = False, **kwargs: Any) -> ESFormer:
    if "genotype" not in kwargs:
        kwargs["genotype"] = Genotype.shipped(variant)
    return build_model_with_cfg(
        ESFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), flatten_sequential=True),
        **kwargs,
    )


@register_model
def esformer_s0(pretrained: bool = False, **kwargs: Any) -> ESFormer:
    """The ESFormer found for 3.5 million parameters."""
    return _create_esformer("esformer_s0", pretrained, **kwargs)


@register_model
def esformer_s1(pretrained: bool = False, **kwargs: Any) -> ESFormer:
    """The ESFormer found for 6 million parameters."""
    return _create_esformer("esformer_s1", pretrained, **kwargs)


@register_model
def esformer_s2(pretrained: bool = False, **kwargs: Any) -> ESFormer:
    """The ESFormer found for 12.5 million parameters."""
    return _create_esformer("esformer_s2", pretrained, **kwargs)
