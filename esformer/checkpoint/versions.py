"""The format of checkpoints and of what is kept beside exported weights, and how older ones become the present one.

1: averaged weights as `ema_state_dict`. 2: as `state_dict_ema`, where timm looks for them. 3: a version number, the
version of the code, the images that the network was trained on and what it reached on them.
"""

from typing import Any

from esformer.errors import ESFormerError

FORMAT = 3
"""Of what this version writes."""


def upgrade(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of the training, of any format, in the present one. Its tensors are shared.

    Raises:
        ESFormerError: its format is newer than this version.
    """
    settings = checkpoint["hyper_parameters"]
    found = settings.get("format", 1 if "ema_state_dict" in checkpoint else 2)
    if not is_known(found):
        raise ESFormerError(f"is of format {found!r}, and 1 to {FORMAT} are known here: update esformer")
    for number in range(found, FORMAT):
        checkpoint = CONVERTERS[number](checkpoint)
    return checkpoint


def is_known(number: Any) -> bool:
    """Whether this version can read a format."""
    return type(number) is int and 1 <= number <= FORMAT


def _from_1(checkpoint: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in checkpoint.items() if name != "ema_state_dict"}
    return rest | ({"state_dict_ema": checkpoint["ema_state_dict"]} if "ema_state_dict" in checkpoint else {})


def _from_2(checkpoint: dict[str, Any]) -> dict[str, Any]:
    settings = {"format": 3, "version": None} | checkpoint["hyper_parameters"]
    return {"metrics": {}, "data": {}} | checkpoint | {"hyper_parameters": settings}


CONVERTERS = {1: _from_1, 2: _from_2}
