"""The typed configuration: what may be set, and what it means."""

import math
import re
from dataclasses import dataclass, field

from esformer.data.datasets import LARGEST_IMAGE, DataConfig
from esformer.errors import ESFormerError
from esformer.recipe import Recipe
from esformer.search.schedule import Schedule

AUTO = "auto"
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true")
SHORT_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}
"""Lightning's short names."""
LOGGERS = ("wandb", "tensorboard", "mlflow", "csv")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false")
"""Those in which every process has the whole network; the last two are the same."""


class ConfigError(ESFormerError):
    """A setting that does not exist or cannot be; says which would be right."""


@dataclass
class RunConfig:
    """Where a run lies, and who is told of it."""

    dir: str | None = None
    """Folder of the run; a second start in it resumes. By default one under runs/, named after the configuration."""
    notify: str | None = None
    """A command for the shell, run when a stage ends: ESFORMER_STAGE is search, train or full, ESFORMER_STATE
    finished, stopped or failed, and ESFORMER_RUN the folder. Such as 'echo "$ESFORMER_RUN" | mail me'."""


@dataclass
class SpaceConfig:
    """What a search searches instead of the ESFormers of a size; a table of trained networks shows what it is worth."""

    name: str | None = None
    """For a search alone, as --space: nats-tss, nats-sss, channel-bench-resnet, nasbench101, darts or another
    package's; null searches the ESFormers. The size's limits do not count then."""
    table: str | None = None
    """The file of its trained networks, as --table, where it has any."""
    dataset: str | None = None
    """On which the accuracies were reached, as --dataset; null takes the table's first."""

    def __post_init__(self) -> None:
        if self.name is None and (self.table or self.dataset):
            raise ConfigError("name is null, but table or dataset is set; name the space that it is of")


@dataclass
class SearchConfig(Schedule):
    """How the search goes: the schedule of section 3.5, what the proxies see, and who computes them."""

    img_size: int | None = None
    """Height and width in pixels of the proxies' inputs (the paper's: 224). null takes the smallest that is known to
    rank genotypes as 224 does: 161 for Entropic Score, 33 for LogSynflow. Networks of a table see its dataset's."""
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
class BudgetConfig:
    """What the network may cost; null is no limit."""

    params: float | None = None
    """Most parameters, with the classifier for the classes of the data."""
    macs: float | str | None = None
    """Most multiply-accumulates of one image of the data's size. `auto` is the paper's of the size (Table 3: 0.4, 0.9
    and 1.4 G at 224 pixels), brought to the data's pixels and classes as those of EfficientFormerV2 scale."""
    latency_ms: float | None = None
    """Most milliseconds for one image of the data's size, measured on what searches (search.accelerator), on one CPU
    thread; other load on the machine disturbs it, so on the CPU it wants search.workers=1."""
    latency: str | None = None
    """A table of pipelines.latency, and most milliseconds of one image as it predicts them, such as phone.csv:20ms. It
    measures nothing, so the search is as fast as without; a table alone is for search.family=latency_ms."""

    def __post_init__(self) -> None:
        for name, least in (("params", 1), ("macs", 1), ("latency_ms", 0)):
            limit = getattr(self, name)
            if isinstance(limit, str):
                if limit != AUTO:
                    raise ConfigError(f"{name} is {limit!r}; it must be a number, {AUTO} or null")
            elif limit is not None and not (least <= limit < math.inf and limit > 0):
                raise ConfigError(f"{name} is {limit}; it must be {'at least 1' if least else 'above 0'}")
        if self.latency is not None:
            if self.latency_ms is not None:
                raise ConfigError(
                    "latency and latency_ms are both set: one is predicted by a table, one measured; choose"
                )
            table_and_limit(self.latency)


def table_and_limit(text: str) -> tuple[str, float | None]:
    """The table and the milliseconds that `budget.latency` names; None where it names a table alone.

    Args:
        text: such as `phone.csv:20ms`.

    Raises:
        ConfigError: the milliseconds are no number above 0.
    """
    table, colon, limit = text.rpartition(":")
    if not colon or "/" in limit:
        return text, None
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) *(ms)?", limit)
    if not found or not table or not float(found[1]) > 0:
        raise ConfigError(f"latency is {text!r}; it must be a table and milliseconds above 0, such as phone.csv:20ms")
    return table, float(found[1])


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
    """Norm statistics of all GPUs together; without it each device has those of its share of the batch."""
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
    """Which ESFormer, as --size. Sets the search space, and the defaults of budget, search and recipe."""
    seed: int = 0
    """Of the search, the initial weights, the order of the images and their augmentation."""
    genotype: str | None = None
    """For training alone: a genotype file or the name of a shipped one; by default the shipped one of the size."""
    init: str | None = None
    """For training alone, what `--from` sets: a checkpoint of any kind, or timm's as timm:efficientformerv2_s0. The
    training starts from its weights, averaged if it has them, and takes its genotype and size, and recipe=finetune."""
    logger: str = "wandb"
    """Who is told of a run as it goes: `wandb`, or, in the run's folder, `tensorboard`, `csv` or `mlflow` (on the
    server of MLFLOW_TRACKING_URI, if that is set). metrics.csv and steps.csv are written in any case."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    recipe: Recipe = field(default_factory=Recipe)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    ablate: AblateConfig = field(default_factory=AblateConfig)

    def __post_init__(self) -> None:
        if self.logger not in LOGGERS:
            raise ConfigError(f"logger is {self.logger!r}; it must be {', '.join(LOGGERS[:-1])} or {LOGGERS[-1]}")
