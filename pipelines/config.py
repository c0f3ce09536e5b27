"""The typed configuration: what may be set, what it means, and how files and command line come together."""

import ast
import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from esformer.choices import SIZES
from esformer.errors import ESFormerError
from esformer.files import ContentError, parse_yaml, read_yaml
from esformer.search.schedule import Schedule
from esformer.training.datasets import LARGEST_IMAGE, DataConfig
from esformer.training.recipe import Recipe
from pipelines.budget import AUTO, BudgetConfig, explain_auto
from pipelines.values import ValueTypeError, convert, dump, show

SECTIONS_WITH_FILES = ("data", "search", "recipe")
PATHS = ("run.dir", "data.root", "genotype", "init")
"""Settings that are paths: `~` in front is the home."""
NOT_THE_RUN = (
    *("run", "trainer", "wandb", "ablate"),
    *("data.workers", "data.timeout", "data.max_corrupt", "search.workers", "search.accelerator"),
)
"""What may differ when a run is resumed: where it lies and on what it runs, not what it computes; and how much an
ablation compares, for a second start adds what is missing."""

ADDED = {"recipe.layer_decay": 1.0, "recipe.freeze": 0, "data.decoder": "pil"}
ADDED |= {"search.batch": "noise", "search.batch_size": 32, "search.family": None, "search.sum": "largest"}
ADDED |= {"search.finalists": 0, "search.finalists_epochs": 9}
ADDED |= {"search.finalists_minutes": None, "search.finalists_continue": False}
"""Settings that there once were not, and the values that change nothing: with them a run is the one that it was."""


PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true")
SHORT_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}
"""Lightning's short names."""
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false")
"""Those in which every process has the whole network; the last two are the same."""
MOST_OF_ALL = 2**31 - 1
MOST = {"seed": 2**32 - 1, "search.workers": 1024, "search.draws": 1000, "ablate.seeds": 10_000}
MOST |= {"search.finalists_epochs": 1_000_000}
MOST |= {"trainer.devices": 1024, "trainer.num_nodes": 100_000, "trainer.threads": 1024}
"""The most of settings that count, where a section says nothing else: what the code, or a machine, can take."""


class ConfigError(ESFormerError):
    """A setting that does not exist or cannot be; says which would be right."""


@dataclass
class RunConfig:
    """Where a run lies."""

    dir: str | None = None
    """Folder of the run; a second start in it resumes. By default one under runs/, named after the configuration."""


@dataclass
class SearchConfig(Schedule):
    """How the search goes: the schedule of section 3.5, what the proxies see, and who computes them."""

    img_size: int | None = None
    """Height and width in pixels of the proxies' inputs (the paper's: 224). null takes the smallest that is known to
    rank genotypes as 224 does: 161 for Entropic Score, 33 for LogSynflow."""
    draws: int | None = None
    """Random draws that a score is the mean of (the paper's: 3). null takes as many as such a ranking needs: 1."""
    workers: int = 1
    """Processes that score, in each process that torchrun or SLURM started. They change the speed, not the result."""
    accelerator: str = "cpu"
    """On what to score: `cpu`, `gpu` or `auto`. Another device rounds otherwise, so it may find another genotype."""
    batch: str = "noise"
    """What proxies look at that need a batch (naswot, zico, grad_norm, grasp): `noise`, or `data`, training images of
    the run's data prepared as in validation. They have search.img_size pixels, or data.img_size if that is null."""
    batch_size: int = 32
    """Images of this batch; they are drawn by `seed`, and the same for every genotype, worker and rank."""
    extended: bool = False
    """Search the space of Table 5, in which the residual bottleneck is an FFN too."""
    finalists: int = 0
    """Genotypes to train before one is chosen: of the best by the guide of the last phase those that differ most. All
    train for a few epochs, the best third anew for three times as many, and so on (successive halving); the winner is
    the run's genotype. On CPUs search.workers train at a time, else one on each device. 0 trains none."""
    finalists_epochs: int = 9
    """Epochs for which the last two or three finalists are trained; those before for a third, a ninth, ..."""
    finalists_minutes: float | None = None
    """Minutes that all of it may take: finalists_epochs then follow from how long an epoch is measured to take."""
    finalists_continue: bool = False
    """Start the training of the winner from the weights that it reached as a finalist, not from random ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.img_size is not None and not 32 <= self.img_size <= LARGEST_IMAGE:
            bound = "at least 32" if self.img_size < 32 else f"at most {LARGEST_IMAGE}"
            raise ConfigError(f"img_size is {self.img_size}; it must be {bound}, or null")
        for name in ("draws", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.batch not in ("noise", "data"):
            raise ConfigError(f"batch is {self.batch!r}; it must be noise or data")
        if not 2 <= self.batch_size <= 1024:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be from 2 to 1024")
        if self.accelerator not in ("cpu", "gpu", "auto"):
            raise ConfigError(f"accelerator is {self.accelerator!r}; it must be cpu, gpu or auto")
        if self.finalists != 0 and not 2 <= self.finalists <= 1000:
            raise ConfigError(f"finalists is {self.finalists}; it must be from 2 to 1000, or 0 for none")
        if self.finalists_epochs < 1:
            raise ConfigError(f"finalists_epochs is {self.finalists_epochs}; it must be at least 1")
        if self.finalists_minutes is not None and not self.finalists_minutes > 0:
            raise ConfigError(f"finalists_minutes is {self.finalists_minutes}; it must be above 0, or null")


@dataclass
class TrainerConfig:
    """On what to run; any of it may change when a run is resumed."""

    accelerator: str = "auto"
    """`cpu`, `gpu`, or `auto` for the best there is."""
    devices: int | None = None
    """Devices of each node; null takes what SLURM or torchrun started, else one."""
    num_nodes: int | None = None
    """Nodes; null takes what SLURM or torchrun started, else one."""
    strategy: str = "auto"
    """How devices work together: `ddp`, or `auto`, which is DDP where there are several."""
    precision: str = "auto"
    """Arithmetic by Lightning's name, such as `32-true` or `bf16-mixed`; `auto` is bf16-mixed on GPUs that have it."""
    accumulate: int | str = "auto"
    """Batches whose gradients are accumulated into one step; `auto` takes as few as fit into memory, which it tries
    before anything starts. The step stays the same but for norm statistics, which are those of a batch."""
    sync_batchnorm: bool = False
    """Norm statistics of all devices together; without it each device has those of its share of the batch."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps after."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower steps. Norm statistics then move twice a step."""
    save_minutes: float = 15
    """Minutes between two checkpoints within an epoch; there is one after each epoch, and one when a signal comes."""
    max_skipped: int = 10
    """Steps in a row whose loss or gradient is not finite that are skipped; one more ends the training."""
    threads: int | None = None
    """CPU threads of each process in training; null leaves it to PyTorch."""
    log_every: int = 50
    """Steps between two entries in the log of the losses."""

    def __post_init__(self) -> None:
        if isinstance(self.accumulate, str) and self.accumulate.isdecimal():
            self.accumulate = int(self.accumulate)
        if isinstance(self.accumulate, str) and self.accumulate != "auto":
            raise ConfigError(f"accumulate is {self.accumulate!r}; it must be a number of batches, or auto")
        for name in ("devices", "num_nodes", "accumulate", "threads", "log_every"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        self.precision = SHORT_PRECISIONS.get(self.precision, self.precision)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy is {self.strategy!r}; it must be auto or ddp: each device has a whole network")
        if not 0 < self.save_minutes < math.inf:
            raise ConfigError(f"save_minutes is {self.save_minutes}; it must be above 0")
        if self.compile and self.grad_checkpointing:
            raise ConfigError("compile and grad_checkpointing are both true, and do not work together; choose one")
        if self.max_skipped < 0:
            raise ConfigError(f"max_skipped is {self.max_skipped}; it must be at least 0")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "auto"
    """`online`, `offline` (to be sent with `wandb sync`), `disabled`, or `auto`: online where there is a login."""
    project: str = "esformer"
    """Project in which the run appears."""
    group: str | None = None
    """Group of runs to which it belongs; null names one after the run's folder."""
    checkpoints: bool = False
    """Send the best and the last checkpoint as artifacts when the training ends."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w. -]{1,128}", self.project):
            raise ConfigError(f"project is {self.project!r}; it must be letters, digits, spaces, '.', '_' and '-'")
        if self.mode not in ("auto", "online", "offline", "disabled"):
            raise ConfigError(f"mode is {self.mode!r}; it must be auto, online, offline or disabled")


@dataclass
class AblateConfig:
    """What pipelines.ablate compares; a second start may ask for more of it."""

    methods: list[str] = field(default_factory=lambda: ["log_synflow", "sum", "decoupled"])
    """What guides each search: `decoupled`, as the settings of the search say; `sum` of Entropic Score and LogSynflow,
    as search.sum says; `random`, the best by this sum of as many random genotypes; a proxy alone or a sum such as
    `log_synflow - 0.5*meco`. Without a search: `efficientformerv2`, the size's shipped genotype."""
    seeds: int = 5
    """Searches of each method; their seeds count up from `seed`."""
    train: bool = False
    """Train what they find, with the recipe and on the data of this configuration, and compare the accuracies."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; it must be at least 1")
        if not self.methods:
            raise ConfigError("methods is empty; name at least one, such as decoupled")


@dataclass
class Config:
    """Everything a pipeline can be told."""

    size: str = "S0"
    """Which ESFormer: S0, S1 or S2. Sets the search space, and the defaults of budget, search and recipe."""
    seed: int = 0
    """Of the search, the initial weights, the order of the images and their augmentation."""
    genotype: str | None = None
    """For training alone: a genotype file or the name of a shipped one; by default the shipped one of the size."""
    init: str | None = None
    """For training alone, what `--from` sets: a checkpoint of any kind, or timm's as timm:efficientformerv2_s0. The
    training starts from its weights, averaged if it has them, and takes its genotype and size, and recipe=finetune."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    ablate: AblateConfig = field(default_factory=AblateConfig)


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
    chosen = {"data": "imagenet"}
    layers = [_read("size", size), *([_read("", "quick")] if quick else [])]
    for layer in layers:
        chosen |= layer.pop("choices", {})
    chosen |= {"recipe": "finetune"} if init is not None else {}
    chosen |= {key: value for key, value in pairs if key in SECTIONS_WITH_FILES}
    layers += [{section: _read(section, name)} for section, name in chosen.items()]
    texts = [*_leaves(OmegaConf.to_container(OmegaConf.merge(*layers)))]
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


def _value(setting: "Setting", raw: Any) -> Any:
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
    from esformer.checkpoint.loading import CheckpointError, find

    try:
        return find(init).genotype.space.partition("-")[0]
    except CheckpointError:
        return SIZES[0]


def to_yaml(config: Config) -> str:
    """The configuration as YAML; what is read from it again is the same, to the letter."""
    text = dump(asdict(config))
    if config.budget.macs == AUTO:
        text = text.replace(f"  macs: {AUTO}\n", f"  macs: {AUTO} # {explain_auto(config)}\n")
    return text


def differences(old: str, new: str) -> list[str]:
    """What makes two configurations (as YAML) different runs: one phrase a key."""
    before, after = (
        {key: value for key, value in _leaves(parse_yaml(text)) if key not in ADDED or value != ADDED[key]}
        for text in (old, new)
    )
    added = ADDED if before else {}
    return [
        f"{key} was {before.get(key, added.get(key))}, is {after.get(key, added.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{free}.") for free in NOT_THE_RUN)
    ]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        raise ContentError("holds no settings")
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{show(override)} is not a setting; write key=value, such as recipe.epochs=100")
    return key, value


def _read(section: str, name: str) -> dict[str, Any]:
    """A file of configs/, with every value as the text that stands there."""
    folder = Path(str(files("configs"))) / section
    there = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in there:
        shown = name if name.isprintable() and len(name) <= 80 else show(name)
        raise ConfigError(f"{section}={shown}: there is no such choice; there are {', '.join(there)}")
    content: dict[str, Any] = read_yaml(folder / f"{name}.yaml", plain=True)
    return content


@dataclass(frozen=True)
class Setting:
    """One field of the configuration, for help, for checking keys and for reading values."""

    key: str
    type: str
    default: Any
    explanation: str
    kind: Any = str
    """The annotation of the field."""


@cache
def settings(kind: type = Config, prefix: str = "") -> tuple[Setting, ...]:
    """Every setting there is, in order, with the explanation that stands below its field."""
    explained = _explanations(kind)
    found: list[Setting] = []
    for f in fields(kind):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default):
            found += settings(type(default), f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            name = f.type.__name__ if type(f.type) is type else str(f.type)
            found.append(Setting(prefix + f.name, name, default, explained.get(f.name, ""), f.type))
    return tuple(found)


def _explanations(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those that it extends."""
    explained: dict[str, str] = {}
    for base in reversed([b for b in kind.__mro__ if is_dataclass(b)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, below in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                explained[statement.target.id] = ast.literal_eval(below.value)  # type: ignore[union-attr]
    return explained


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
