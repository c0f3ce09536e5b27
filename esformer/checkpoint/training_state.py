"""Whether a training can go on from a checkpoint: all in it is compared with the training that is to use it.

Neither Lightning nor an optimiser looks at what it is given: a tensor of another shape ends the process in the
optimiser's fused step, a missing part a hook, and a wrong counter trains something else without a word.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from esformer.errors import ESFormerError
from esformer.model.weights import flaw

MOST = 2**53
"""No counter is as large."""
ADAM, MOMENTUM = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""What AdamW keeps of a parameter, and what SGD does if it has momentum."""
FIXED = (
    *("betas", "eps", "weight_decay", "amsgrad", "maximize", "capturable", "differentiable"),
    *("momentum", "dampening", "nesterov"),
)
"""Of a group of parameters: what the recipe decides, and no step changes."""
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
PREFIX = "model."


class StateError(ESFormerError):
    """A checkpoint that a training cannot go on from; says which part, and what is wrong with it."""


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint must fit.

    Args:
        network: what is trained; on the meta device it costs nothing.
        optimizer: of its parameters, as it begins.
        loops: the state of Lightning's `fit_loop` as it begins.
        callbacks: the states of the callbacks that must have one, as they begin.
        settings: what a checkpoint's own settings must say, such as `num_classes`.
        ema: whether the weights are averaged.
        max_skipped: steps in a row that may be skipped; so many can have left the optimiser without a state.
        epochs: of the whole training.
    """

    network: nn.Module
    optimizer: Optimizer
    loops: Mapping[str, Any]
    callbacks: Mapping[str, Any]
    settings: Mapping[str, Any]
    ema: bool
    max_skipped: int
    epochs: int


def check_training_state(content: Mapping[str, Any], like: TrainingState) -> None:
    """Refuse a checkpoint that is not of this training, or is not whole.

    Args:
        content: of the checkpoint, in the present format.
        like: what it must fit.

    Raises:
        StateError: says which part is missing or odd.
    """
    _check_settings(content, like.settings)
    weights = {f"{PREFIX}{name}": value for name, value in like.network.state_dict().items()}
    _check_weights("state_dict", content.get("state_dict"), weights)
    if like.ema:
        _check_weights("state_dict_ema", content.get("state_dict_ema"), like.network.state_dict())
    step = _count("global_step", content.get("global_step"))
    _check_loops(content, like, step)
    _check_optimizer(content, like, step)
    _check_schedule(content, like, step)
    _check_callbacks(content, like.callbacks)
    _check_rest(content)


def _check_settings(content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    own = _mapping("hyper_parameters", content.get("hyper_parameters"))
    for name, wanted in settings.items():
        if type(own.get(name)) is not type(wanted) or own[name] != wanted:
            raise StateError(f"{name} is {_show(own.get(name))} there, and {wanted} in this training")
    _mapping("hyper_parameters.provenance", own.get("provenance"))
    version = content.get("pytorch-lightning_version")
    if not isinstance(version, str) or not version.startswith("2.") or not version[2:3].isdigit():
        raise StateError(f"the version of Lightning that wrote it is {_show(version)}")


def _check_weights(part: str, found: Any, wanted: Mapping[str, Tensor]) -> None:
    found = _mapping(part, found)
    for name, like in wanted.items():
        if name not in found:
            raise StateError(f"{part} has no {name}")
        _check_tensor(f"{part}: {name}", name, found[name], like)
        if name.endswith("running_var") and bool((found[name] < 0).any()):
            raise StateError(f"{part}: {name} is a variance and below 0")
    if strange := next((name for name in found if name not in wanted), None):
        raise StateError(f"{part} has {_show(strange)}, which this network has not")


def _check_tensor(where: str, name: str, found: Any, like: Tensor) -> None:
    if why := flaw(name, found):
        raise StateError(f"{where} {why}")
    if found.shape != like.shape:
        raise StateError(f"{where} is of shape {tuple(found.shape)}; it must be {tuple(like.shape)}")
    end = found.storage_offset() + found.numel()
    if not found.is_contiguous(memory_format=_format(like)) or found.untyped_storage().nbytes() < end * found.itemsize:
        raise StateError(f"{where} does not lie in memory as its parameter does")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise StateError(f"{where} holds numbers that are not finite")


def _format(like: Tensor) -> torch.memory_format:
    return torch.contiguous_format if like.is_contiguous() else torch.channels_last


def _check_loops(content: Mapping[str, Any], like: TrainingState, step: int) -> None:
    """Where the training stands; its counters agree with each other."""
    loops = _mapping("loops.fit_loop", _mapping("loops", content.get("loops")).get("fit_loop"))
    _check_like("loops.fit_loop", loops, like.loops)
    epoch = _count("epoch", content.get("epoch"))
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    epochs = loops["epoch_progress"]["current"]["completed"]
    if steps != step or epochs != epoch or epoch > like.epochs:
        raise StateError(
            f"it stands in epoch {epoch} of {like.epochs} at step {step},"
            f" and its loops in epoch {epochs} at step {steps}"
        )
    for name in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        for kind in ("total", "current"):
            counts = [loops[name][kind][word] for word in ("completed", "processed", "started", "ready")]
            if counts != sorted(counts) or counts[-1] > counts[0] + 1:
                raise StateError(f"loops.fit_loop.{name}.{kind} cannot be: {loops[name][kind]}")


def _check_optimizer(content: Mapping[str, Any], like: TrainingState, step: int) -> None:
    states = content.get("optimizer_states")
    if not isinstance(states, list) or len(states) != 1:
        raise StateError("optimizer_states is not the state of one optimiser")
    state = _mapping("optimizer_states", states[0])
    groups, wanted = state.get("param_groups"), like.optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(wanted):
        raise StateError(f"the optimiser's param_groups are not {len(wanted)}")
    for number, (group, own) in enumerate(zip(groups, wanted, strict=True)):
        where = f"param_groups[{number}] of the optimiser"
        group = _mapping(where, group)
        if group.get("params") != own["params"]:
            raise StateError(f"{where} is of other parameters than in this training")
        for name in FIXED:
            if name in own and _plain(group.get(name, own[name])) != _plain(own[name]):
                raise StateError(f"{where}: {name} is {_show(group[name])}; it must be {own[name]}")
        for name in ("lr", "initial_lr"):
            _number(f"{where}: {name}", group.get(name, 0.0), least=0.0)
        for name in ("fused", "foreach"):
            if not isinstance(group.get(name), bool | None):
                raise StateError(f"{where}: {name} is {_show(group[name])}")
    _check_moments(_mapping("the optimiser's state", state.get("state")), like, step)


def _check_moments(state: Mapping[Any, Any], like: TrainingState, step: int) -> None:
    parameters = [parameter for group in like.optimizer.param_groups for parameter in group["params"]]
    sgd = isinstance(like.optimizer, SGD)
    if not state and ((sgd and not like.optimizer.defaults["momentum"]) or step <= like.max_skipped):
        return
    names = MOMENTUM if sgd else ADAM
    if set(state) != set(range(len(parameters))):
        raise StateError(f"the optimiser has states of {len(state)} parameters; there are {len(parameters)}")
    for number, parameter in enumerate(parameters):
        where = f"the optimiser's state of parameter {number}"
        own = _mapping(where, state[number])
        if set(own) != set(names):
            raise StateError(f"{where} is not {', '.join(names)}")
        for name in names:
            if name != "step":
                _check_tensor(f"{where}: {name}", name, own[name], parameter)
        if sgd:
            continue
        if bool((own["exp_avg_sq"] < 0).any()):
            raise StateError(f"{where}: exp_avg_sq is a mean of squares and below 0")
        _check_tensor(f"{where}: step", "step", own["step"], torch.empty((), device="meta"))
        if not 0 <= float(own["step"]) <= step:  # 0 if all were skipped
            raise StateError(f"{where}: step is {float(own['step']):g}, and the training made {step}")


def _check_schedule(content: Mapping[str, Any], like: TrainingState, step: int) -> None:
    found = content.get("lr_schedulers")
    if not isinstance(found, list) or len(found) != 1:
        raise StateError("lr_schedulers is not the state of one schedule")
    state = _mapping("lr_schedulers", found[0])
    rates = [group["lr"] for group in like.optimizer.param_groups]
    schedule = LambdaLR(like.optimizer, lambda step: 1.0)
    fresh = schedule.state_dict()
    for group, rate in zip(like.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # what other versions of PyTorch keep does no harm, unless it takes the place of something else
    if strange := next((name for name in state if name not in fresh and hasattr(schedule, str(name))), None):
        raise StateError(f"lr_schedulers has {_show(strange)}, which a schedule has not")
    base = state.get("base_lrs")
    if not isinstance(base, list) or len(base) != len(rates) or not all(map(_close, base, rates)):
        raise StateError(f"lr_schedulers: base_lrs is {_show(base)}; it must be {_show(rates)}")
    if _count("lr_schedulers: last_epoch", state.get("last_epoch")) != step:
        raise StateError(f"lr_schedulers stands at step {state['last_epoch']}, and the training at {step}")
    for name in state.keys() & fresh.keys():
        _check_like(f"lr_schedulers: {name}", state[name], fresh[name])
    if len(state.get("lr_lambdas", rates)) != len(rates) or any(state.get("lr_lambdas", ())):
        raise StateError("lr_schedulers: lr_lambdas is not empty")


def _check_callbacks(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = _mapping("callbacks", content.get("callbacks"))
    for name, like in wanted.items():
        _check_like(f"callbacks.{name}", found.get(name), like)
    rows = found.get("History", {}).get("epochs", []) if isinstance(found.get("History"), dict | None) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _are_numbers(row) for row in rows):
        raise StateError("callbacks.History is not a list of epochs and their figures")


def _check_rest(content: Mapping[str, Any]) -> None:
    """What is not in checkpoints of every version and device."""
    if _count("accumulate", content.get("accumulate", 1)) < 1:
        raise StateError("accumulate is 0")
    losses = content.get("train_loss", [[0.0, 0.0]])
    if not isinstance(losses, list) or not losses:
        raise StateError(f"train_loss is {_show(losses)}; it must be a sum and a number of images of each device")
    for pair in losses:
        if not isinstance(pair, list) or len(pair) != 2:
            raise StateError(f"train_loss holds {_show(pair)}; it must be a sum and a number of images")
        for value in pair:
            _number("train_loss", value, least=0.0)
    if not _are_numbers(_mapping("metrics", content.get("metrics", {}))):
        raise StateError("metrics are not numbers")
    corrupt = _mapping("ImageDataModule", content.get("ImageDataModule", {"corrupt": {}})).get("corrupt")
    if not all(isinstance(word, str) for pair in _mapping("the corrupt images", corrupt).items() for word in pair):
        raise StateError("the corrupt images that it knows are not names and reasons")
    if "MixedPrecision" in content:
        scaler = _mapping("MixedPrecision", content["MixedPrecision"])
        for name in SCALER:
            _number(f"MixedPrecision: {name}", scaler.get(name), least=0.0)
        if not scaler["scale"] > 0:
            raise StateError("MixedPrecision: scale is 0")


def _check_like(where: str, found: Any, like: Any) -> None:
    """Refuse what has not the keys and the types of a state as it begins."""
    if isinstance(like, Mapping):
        found = _mapping(where, found)
        for name, value in like.items():
            _check_like(f"{where}.{name}", found.get(name), value)
    elif isinstance(like, bool | None):
        if not isinstance(found, bool | None):
            raise StateError(f"{where} is {_show(found)}; it must be true or false")
    elif isinstance(like, int):
        _count(where, found)
    elif isinstance(like, float):
        _number(where, found, least=-math.inf)
    elif isinstance(like, Sequence) and not isinstance(found, list):
        raise StateError(f"{where} is {_show(found)}; it must be a list")


def _mapping(where: str, found: Any) -> Mapping[Any, Any]:
    if not isinstance(found, dict):
        raise StateError(f"{where} is {'missing' if found is None else f'a {type(found).__name__}'}")
    return found


def _count(where: str, found: Any) -> int:
    if type(found) is not int or not 0 <= found < MOST:
        raise StateError(f"{where} is {_show(found)}; it must be a whole number, not below 0")
    return found


def _number(where: str, found: Any, least: float) -> None:
    if type(found) not in (int, float) or not least <= found < math.inf:
        raise StateError(f"{where} is {_show(found)}; it must be a number" + (", not below 0" if least == 0 else ""))


def _are_numbers(row: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(name, str) and (type(value) is float or (type(value) is int and abs(value) < MOST))
        for name, value in row.items()
    )


def _close(one: Any, other: float) -> bool:
    return type(one) in (int, float) and math.isclose(one, other, rel_tol=1e-9)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    """A value of a file that may be forged, short enough for a message."""
    try:
        return "missing" if value is None else repr(value)[:60]
    except (ValueError, RecursionError):  # an integer beyond what Python prints, or lists without end
        return f"a {type(value).__name__}"
