"""Other people's proxies, spaces and images: as docs/ shows them, found by commands and by workers."""

import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from sklearn.datasets import load_digits
from torch import nn

from esformer import GeneSpace, open_space, proxies, register_space
from esformer.benchmarks import spaces
from esformer.benchmarks.base import BenchmarkError
from esformer.data import base
from esformer.data.base import CorruptImage, DataError, register_data_source
from esformer.data.datasets import DataConfig, resolve
from esformer.errors import ESFormerError
from esformer.proxies import Proxy, ProxyError, get, register_proxy
from esformer.search.schedule import Schedule

ROOT = Path(__file__).parent.parent
PAGE = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("proxy", "space", "images"))
PROXY, PROGRAM, SPACE, _, IMAGES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLE = re.search(r"```csv\n(.*?)```", PAGE, re.DOTALL)[1]
POINTS = re.findall(r'\[project.entry-points."(.*?)"\]\n(.*?)```', PAGE, re.DOTALL)
assert [group for group, _ in POINTS] == ["esformer.proxies", "esformer.spaces", "esformer.data_sources"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The page's package, as if it were installed: its folder."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in {"proxies": PROXY, "spaces": SPACE, "images": IMAGES, "__init__": ""}.items():
        (folder / "mine").mkdir(exist_ok=True)
        (folder / f"mine/{name}.py").write_text(text)
    about = folder / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("".join(f"[{group}]\n{text}" for group, text in POINTS).replace('"', ""))
    return folder


@pytest.fixture
def python(package, warm, tmp_path):
    """Runs a module or a script in an empty folder where the package is installed, and gives what it prints."""
    env = {"PYTHONPATH": os.pathsep.join(map(str, (package, ROOT))), "WANDB_MODE": "disabled"}

    def python(*command, code=0):
        return warm.start(command, tmp_path, env).finish(code, timeout=500)

    return python


@pytest.mark.nightly
def test_the_page_s_program_runs(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert re.search(r"^-?\d+\.\d+$[\s\S]*^Genotype\(space='S0'", python("program.py"), re.MULTILINE)


SMALL = "search.unit=evaluations search.starts=1 search.start_length=9 search.total=9 search.start_population=5".split()
SMALL += "search.start_tournament=2 search.img_size=33 search.start_proxy=output_spread".split()


@pytest.mark.nightly
def test_a_command_and_its_workers_find_a_proxy_of_another_package(python, tmp_path):
    command = ("pipelines.search", "--size", "S0", *SMALL)
    python(*command, "run.dir=one")
    python(*command, "search.workers=2", "run.dir=two")
    one, two = (Path(tmp_path, name, "genotype.yaml").read_text().split("\n", 2)[2] for name in ("one", "two"))
    assert one == two
    assert "there is no proxy 'output_spred'; there are activations" in python(
        *command[:-1], "search.start_proxy=output_spred", "run.dir=no", code=2
    )


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.nightly
def test_a_search_and_its_workers_find_a_space_of_another_package(python, tmp_path):
    command = ("pipelines.search", "--space", "plain-nets", *SMALL[:-1], "search.start_proxy=naswot")
    python(*command, "budget.params=10000", "run.dir=one")
    python(*command, "budget.params=10000", "search.workers=2", "run.dir=two")
    one, two = (summary_of(tmp_path / name) for name in ("one", "two"))
    assert one["architecture"] == two["architecture"] and one["params"] <= 10000 and "accuracy" not in one
    (tmp_path / "trained.csv").write_text(TABLE)
    python(*command[:-1], "search.start_proxy=accuracy", "--table", "trained.csv", "run.dir=four")
    four = summary_of(tmp_path / "four")
    assert (four["architecture"], four["accuracy"], four["regret"]) == ("3-3-3-8-16-32", 68.1, 0)
    refused = python("pipelines.search", "--space", "plain", code=2)
    assert "there is no space 'plain'; there are nats-tss, nats-sss, channel-bench-resnet" in refused
    assert refused.endswith("esformer, darts, plain-nets\n")


def write_digits(folder):
    """The digits 0 to 2 as the page's archives."""
    import io

    from PIL import Image

    folder.mkdir()
    images, labels = load_digits(n_class=3, return_X_y=True)
    for name, part in {"train": slice(0, 64), "val": slice(64, 96)}.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for i, (pixels, label) in enumerate(zip(images[part], labels[part], strict=True)):
                file = io.BytesIO()
                Image.fromarray((pixels.reshape(8, 8) * 15.9).astype("uint8")).save(file, "png")
                archive.writestr(f"{label}/{i}.png", file.getvalue())


@pytest.mark.nightly
def test_a_training_and_an_evaluation_find_images_of_another_package(python, tmp_path):
    write_digits(tmp_path / "zips")
    images = ("data=folder", "data.name=zip", "data.root=zips", "data.img_size=32")
    short = ("recipe=quick", "recipe.epochs=1", "recipe.batch_size=32", "trainer.accelerator=cpu", "data.workers=1")
    trained = python("pipelines.train", "--size", "S0", *images, *short, "run.dir=t")
    assert "top-1" in trained
    evaluated = python("pipelines.evaluate", "t/checkpoints/last.ckpt", "data.root=zips", "data.workers=0")
    assert re.search(r"images.*32\b", evaluated)
    assert "must be one of imagenet, folder, cifar10, digits, synthetic, zip" in python(
        "pipelines.train", *images, "data.name=zipp", code=2
    )


@pytest.mark.nightly
def test_a_package_that_cannot_be_imported_is_said_and_left_out(package, python, tmp_path):
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[esformer.proxies]\nbroken = broken.nothing\n")
    (tmp_path / "look.py").write_text("import esformer.proxies as p; print('output_spread' in p.names())")
    said = python("look.py")
    assert "broken.nothing of package broken cannot be imported: No module named 'broken'" in said and "True" in said


class Idle(Proxy):
    needs, source = "genotype", "a test"

    def __init__(self, name="idle"):
        self.name = name

    def measure(self, subject, draw):
        return 1.0


@pytest.fixture
def registries(monkeypatch):
    monkeypatch.setattr(proxies, "_PROXIES", dict(proxies._PROXIES))
    monkeypatch.setattr(base, "_OPENERS", dict(base._OPENERS))
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))


def test_what_is_no_proxy_is_refused(registries):
    assert register_proxy(Idle) is Idle and get("idle").measure(None, None) == 1
    register_proxy(Idle)  # a cell of a notebook that runs again
    for wrong, words in {
        int: "is not a proxy: derive it from",
        Idle("naswot"): "there is a proxy 'naswot' already, esformer.proxies.naswot.NASWOT",
        Idle("Big Name"): "its name must be small letters, digits and _",
        type("Other", (Idle,), {}): "there is a proxy 'idle' already, .*Idle",
        type("Mute", (Proxy,), {"measure": Idle.measure}): "Mute has no name and no needs and no source",
        type("Keen", (Idle,), {"__init__": lambda self, much: None}): "cannot be made without arguments",
    }.items():
        with pytest.raises(ProxyError, match=words):
            register_proxy(wrong)


def test_a_proxy_of_the_main_program_cannot_go_to_workers(registries, monkeypatch):
    from esformer import Budget, SearchSpace, search

    monkeypatch.setattr(Idle, "__module__", "__main__")
    register_proxy(Idle)
    schedule = Schedule(unit="evaluations", starts=1, start_length=9, total=9, start_proxy="idle", start_population=5)
    with pytest.raises(ESFormerError, match="idle is defined in the program that runs, where workers cannot import it"):
        search(SearchSpace.for_size("S0"), Budget(), schedule, workers=2)
    assert search(SearchSpace.for_size("S0"), Budget(), schedule).scores == {"idle": 1.0}


class Four:
    """Four images of two classes; each may be wrong in a way of its own."""

    place, classes, labels = "four", ["a", "b"], [0, 1, 1, 0]

    def __len__(self):
        return 4

    def read(self, index):
        raise CorruptImage("is torn")

    def name_of(self, index):
        return f"image {index}"


def test_what_is_no_data_source_is_refused(registries):
    @register_data_source("four")
    def open_four(config, train):
        return made[train]

    for name in ("folder", "Four!"):
        with pytest.raises(DataError, match=r"already|small letters"):
            register_data_source(name)(open_four)
    with pytest.raises(DataError, match="there is a data source 'four' already"):
        register_data_source("four")(lambda config, train: None)
    config = DataConfig(name="four", num_classes=None)
    made = [Four(), Four()]
    assert resolve(config).num_classes == 2
    made[0].classes = ["b", "a"]
    with pytest.raises(DataError, match="data source 'four': four and four have different classes"):
        resolve(config)
    made[0] = made[1]
    for labels in ([0, 1], [0, 1, 2, 0], [0, 1, 1, -1]):
        made[1].labels = labels
        with pytest.raises(DataError, match="four has 4 images, [24] labels and 2 classes; each image needs a label"):
            resolve(config)


class Widths(GeneSpace):
    name, group = "widths", "size"
    genes = (("8", "16", "32"),)

    def network(self, values):
        width = int(values[0])
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def test_what_is_no_space_is_refused(registries):
    assert register_space(Widths) is Widths and open_space("widths").cardinality == 3
    register_space(Widths)  # a cell of a notebook that runs again
    for wrong, words in {
        3: "has the name None; a space is a class whose `name` is small letters",
        type("Big", (Widths,), {"name": "Big Name"}): "has the name 'Big Name'",
        type("Other", (Widths,), {}): "there is a space 'widths' already",
        type("Cells", (Widths,), {"name": "darts"}): "there is a space 'darts' already",
        type("Table", (Widths,), {"name": "nats-tss"}): "there is a space 'nats-tss' already",
    }.items():
        with pytest.raises(BenchmarkError, match=words):
            register_space(wrong)
    register_space(type("Nothing", (), {"name": "nothing", "__init__": lambda self, table, dataset: None}))
    with pytest.raises(BenchmarkError, match="space nothing gives .*, which is no esformer.search.space.ScoredSpace"):
        open_space("nothing")


def test_a_space_of_the_main_program_cannot_go_to_workers(monkeypatch):
    from esformer import Budget, search

    monkeypatch.setattr(Widths, "__module__", "__main__")
    schedule = Schedule("evaluations", starts=1, start_length=9, total=9, start_proxy="parameters", start_population=5)
    with pytest.raises(ESFormerError, match="widths is defined in the program that runs, where workers cannot import"):
        search(Widths(), Budget(), schedule, workers=2)
    assert search(Widths(), Budget(), schedule).scores == {"parameters": 32 * 28 + 330}
