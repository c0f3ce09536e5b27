"""How files and command line come together to a configuration, and how that is written and compared."""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf

from configs.budget import explain_auto
from configs.explain import FOLDER, SECTIONS_WITH_FILES, Setting, choices, settings
from configs.schema import AUTO, Config, ConfigError
from configs.values import ValueTypeError, convert, dump, show
from esformer.choices import SIZES, size_of
from esformer.files import ContentError, parse_yaml, read_yaml

PATHS = ("run.dir", "data.root", "space.table", "budget.latency", "genotype", "init")
"""Settings that are paths: `~` in front is the home."""
NOT_THE_RUN = (
    *("run", "trainer", "wandb", "logger", "ablate"),
    *("data.workers", "data.timeout", "data.max_corrupt", "search.workers", "search.accelerator"),
)
"""What may differ when a run is resumed: where it lies and on what it runs, not what it computes; and how much an
ablation compares, for a second start adds what is missing."""

ADDED = {"recipe.layer_decay": 1.0, "recipe.freeze": 0, "data.decoder": "pil"}
ADDED |= {"search.batch": "noise", "search.batch_size": 32, "search.family": None, "search.sum": "largest"}
ADDED |= {"search.mutated_genes": None, "search.crossover": True}
ADDED |= {"search.finalists": 0, "search.finalists_epochs": 9}
ADDED |= {"search.finalists_minutes": None, "search.finalists_continue": False}
ADDED |= {"logger": "wandb"}
ADDED |= {"space.name": None, "space.table": None, "space.dataset": None}
ADDED |= {"recipe.schedule": "cosine", "recipe.lr_decay": 0.97, "recipe.optimizer": "adamw", "recipe.momentum": 0.9}
ADDED |= {"recipe.crop_padding": 0, "recipe.color_jitter": [], "recipe.cutout": 0, "recipe.drop_path_schedule": "depth"}
ADDED |= {"budget.latency": None}
ADDED |= {"recipe.loss": "bce", "recipe.auxiliary": 0.0}
"""Settings that there once were not, and the values that change nothing: with them a run is the one that it was."""
MOST_OF_ALL = 2**31 - 1
MOST = {"seed": 2**32 - 1, "search.workers": 1024, "search.draws": 1000, "ablate.seeds": 10_000}
MOST |= {"search.finalists_epochs": 1_000_000}
MOST |= {"trainer.devices": 1024, "trainer.num_nodes": 100_000, "trainer.threads": 1024}
"""The most of settings that count, where a section says nothing else: what the code, or a machine, can take."""


DEFAULT_CHOICES = {"data": "imagenet", "search": "naswot", "recipe": "s0-s1"}
"""The named choices of a command without settings; a size, `--quick` and `--from` may bring others."""


def compose(size: str | None = None, quick: bool = False, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a size, with or without `--quick`, and `key=value` settings on top.

    A section set to a name (`data=cifar10`) takes the choice of that name under configs/, as if it stood first. Without
    a size it is that of the checkpoint to start from, if there is one, or S0.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, or out of range.
    """
    pairs = [_split(override) for override in overrides]
    known = {setting.key: setting for setting in settings()}
    init = next((value for key, value in reversed(pairs) if key == "init"), None)
    init = None if init is None else _value(known["init"], init)
    size = next((value for key, value in reversed(pairs) if key == "size"), size) or _size_of(init)
    if size not in SIZES:
        raise ConfigError(f"size is {show(size)}; it must be one of {', '.join(SIZES)}")
    chosen = {**DEFAULT_CHOICES}
    of_table = next((value for key, value in reversed(pairs) if key == "space.name"), "null") != "null"
    layers: list[dict[str, Any]] = [
        {} if of_table else {"budget": {"params": f"{size_of(size).params:.1f}", "macs": AUTO}}
    ]
    layers += [_read("size", size)] if size in choices("size") else []
    layers += [_read("", "quick")] if quick else []
    for layer in layers:
        chosen |= layer.pop("choices", {})
    chosen |= {"recipe": "finetune"} if init is not None else {}
    chosen |= {key: value for key, value in pairs if key in SECTIONS_WITH_FILES}
    layers += [{section: _read(section, name)} for section, name in chosen.items()]
    texts = [*leaves(OmegaConf.to_container(OmegaConf.merge(*layers)))]
    texts += [(key, value) for key, value in pairs if key not in (*SECTIONS_WITH_FILES, "init", "size")]
    for key, _ in texts:
        _check_key(key)
    values = {key: _value(setting, setting.default) for key, setting in known.items()}
    values |= {key: _value(known[key], text) for key, text in texts} | {"size": size, "init": init}
    config = _build(values)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed is {config.seed}; it must be from 0 to {2**32 - 1}")
    for key, value in values.items():
        _check_range(key, value)
    return config


def _value(setting: Setting, raw: Any) -> Any:
    try:
        return convert(raw, setting.kind, setting.key in PATHS)
    except ValueTypeError as error:
        raise ConfigError(f"{setting.key} {error}") from None


def _build(values: dict[str, Any]) -> Config:
    """The dataclasses of settings by their keys; each checks itself."""
    made: dict[str, Any] = {}
    for f in fields(Config):
        if f.name in values:
            made[f.name] = values[f.name]
            continue
        kind: Any = f.default_factory
        try:
            made[f.name] = kind(**{g.name: values[f"{f.name}.{g.name}"] for g in fields(kind)})
        except ValueError as error:
            raise ConfigError(f"{f.name}.{error}") from None
    return Config(**made)


def _check_range(key: str, value: Any) -> None:
    """Refuse numbers that no part of the code can take, if they are not refused by the section itself."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{key} is {number}; it must be finite")
        if isinstance(number, int) and abs(number) > (most := MOST.get(key, MOST_OF_ALL)):
            raise ConfigError(f"{key} is {number}; it must be at most {most}")


def _size_of(init: str | None) -> str:
    """The size of a checkpoint; S0 where none can be opened, which whoever needs it will say."""
    if init is None:
        return SIZES[0]
    from esformer.checkpoint import CheckpointError
    from esformer.checkpoint.loading import find

    try:
        size = find(init).genotype.space.partition("-")[0]
        return size if size in SIZES else SIZES[0]
    except CheckpointError:
        return SIZES[0]


def to_yaml(config: Config) -> str:
    """The configuration as YAML; what is read from it again is the same, to the letter."""
    text = dump(asdict(config))
    if config.budget.macs == AUTO:
        text = text.replace(f"  macs: {AUTO}\n", f"  macs: {AUTO} # {explain_auto(config)}\n")
    return text


def default_values() -> dict[str, Any]:
    """Every setting as it is where a command is given none: of size S0, with the choices that this brings."""
    return dict(leaves(asdict(compose())))


def differences(old: str, new: str) -> list[str]:
    """What makes two configurations (as YAML) different runs: one phrase a key."""
    return [
        f"{key} was {before}, is {after}"
        for key, before, after in changes(old, new)
        if not any(f"{key}.".startswith(f"{free}.") for free in NOT_THE_RUN)
    ]


def changes(old: str, new: str) -> list[tuple[str, Any, Any]]:
    """Every key that has other values in two configurations (as YAML), and these."""
    before, after = (
        {key: value for key, value in leaves(parse_yaml(text)) if key not in ADDED or value != ADDED[key]}
        for text in (old, new)
    )
    added = ADDED if before else {}
    return [
        (key, before.get(key, added.get(key)), after.get(key, added.get(key)))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of mappings within mappings, by its key such as `search.total`.

    Args:
        tree: a mapping.
        prefix: before each key.

    Raises:
        ContentError: it is no mapping.
    """
    if not isinstance(tree, dict):
        raise ContentError("holds no settings")
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{show(override)} is not a setting; write key=value, such as recipe.epochs=100")
    return key, value


def _read(section: str, name: str) -> dict[str, Any]:
    """A file of configs/, with every value as the text that stands there."""
    if name not in (there := choices(section)):
        shown = name if name.isprintable() and len(name) <= 80 else show(name)
        raise ConfigError(f"{section}={shown}: there is no such choice; there are {', '.join(there)}")
    content: dict[str, Any] = read_yaml(FOLDER / section / f"{name}.yaml", plain=True)
    return content


def _check_key(key: str) -> None:
    known = [setting.key for setting in settings()]
    sections = {k.partition(".")[0] for k in known if "." in k}
    if key in known:
        return
    if key in sections:
        raise ConfigError(
            f"{key} is a section; set one of its fields, such as {next(k for k in known if k.startswith(key))}"
        )
    same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0)
    raise ConfigError(f"there is no setting {show(key)}; did you mean {near[0]!r}?")
