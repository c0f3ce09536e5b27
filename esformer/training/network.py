"""From an architecture of any space and a recipe to the network that is trained."""

from torch import nn

from esformer.benchmarks.architecture import NetworkSettings
from esformer.benchmarks.trained import AnyArchitecture, network_for
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.recipe import Recipe

OF_ESFORMERS = {"freeze": 0, "layer_decay": 1.0}
"""Settings of the recipe that ask something of the network which ESFormers alone can say, and what leaves it out."""


class NetworkError(ESFormerError):
    """A recipe that asks of a network what it cannot do; says which setting would be right."""


def build_network(architecture: AnyArchitecture, recipe: Recipe, num_classes: int, img_size: int) -> nn.Module:
    """The network with random weights, with the paths and the auxiliary classifier that the recipe asks for.

    Args:
        architecture: of any space.
        recipe: how it is to be trained.
        num_classes: classes of the images.
        img_size: their height and width in pixels.

    Raises:
        ESFormerError: the recipe, the images and the network do not fit each other.
    """
    by_depth = recipe.drop_path_schedule == "depth"
    if isinstance(architecture, Genotype):
        if recipe.auxiliary:
            raise NetworkError("ESFormers have no auxiliary tower; set recipe.auxiliary=0")
        if not by_depth and recipe.drop_path:
            raise NetworkError("the stochastic depth of ESFormers grows with it; set recipe.drop_path_schedule=depth")
        return ESFormer(architecture, num_classes, img_size=img_size, drop_path_rate=recipe.drop_path)
    for name, none in OF_ESFORMERS.items():
        if getattr(recipe, name) != none:
            raise NetworkError(
                f"recipe.{name} is {getattr(recipe, name)}, which only ESFormers know how to follow; for a network of"
                f" space {architecture.space} set recipe.{name}={none:g}"
            )
    if recipe.clip_mode == "agc" and recipe.clip_grad:
        raise NetworkError(
            "recipe.clip_mode=agc spares the classifier, which only ESFormers name; for a network of space"
            f" {architecture.space} set recipe.clip_mode=norm, with a recipe.clip_grad for it"
        )
    asked = NetworkSettings(num_classes, img_size, recipe.drop_path, by_depth, recipe.auxiliary > 0)
    return network_for(architecture, asked)
