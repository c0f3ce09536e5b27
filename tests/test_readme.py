"""What the README and the pages behind it show runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs.compose import compose
from esformer.choices import choices_of
from esformer.genotype import Genotype
from pipelines import train

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
PAGES = {str(page.relative_to(ROOT / "docs")): page.read_text() for page in (ROOT / "docs").rglob("*.md")}

RUN = ("run.md", "checkpoints.md")
"""Pages of docs/ whose Python runs with a checkpoint, as the README's does."""


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `last.ckpt`, `genotype.yaml`, `image.png` and `images` are."""
    folder = tmp_path_factory.mktemp("readme")
    stages = [[{gene: values[0] for gene, values in block.items()} for block in s] for s in choices_of("S0").options]
    Genotype.from_dict({"genotype": 1, "space": "S0", "stages": stages}).save(folder / "genotype.yaml")
    short = [
        "data.limit=64",
        "recipe.epochs=1",
        "recipe.batch_size=32",
        "trainer.accelerator=cpu",
        "wandb.mode=disabled",
    ]
    train.main(["--quick", f"genotype={folder / 'genotype.yaml'}", *short, f"run.dir={folder / 'run'}"])
    (folder / "run/checkpoints/last.ckpt").rename(folder / "last.ckpt")
    for i, (pixels, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if i < 170:
            image = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8))
            where = folder / "images" / ("train" if i < 130 else "val") / str(label)
            where.mkdir(parents=True, exist_ok=True)
            image.save(where / f"{i}.png")
    image.save(folder / "image.png")
    return folder


@pytest.mark.parametrize(
    "block", [block for page in (README, *map(PAGES.get, RUN)) for block in blocks(page, "python")]
)
def test_python_blocks_run(block, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(block, "a page", "exec"), {})
    printed = capsys.readouterr().out
    for start, words in {
        "network = esformer.load": r"^\d$",
        "backbone =": r"^\[.*\] \[\(40, 80\), \(20, 40\), \(10, 20\)",
    }.items():
        if start in block:
            assert re.search(words, printed, re.MULTILINE), printed
    assert ("3.6e+34 genotypes" in printed) == ("cardinality" in block)


@pytest.mark.nightly
@pytest.mark.parametrize("block", blocks(PAGES["checkpoints.md"], "sh"), ids=lambda block: block.split("\n")[0])
def test_commands_run(block, folder):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PYTHONPATH": path, "PATH": tools, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(["bash", "-e", "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    results = {
        "evaluate": "last-evaluation/evaluation.json",
        "train": "runs/*/checkpoints/last.ckpt",
        "export": "mine/README.md",
    }
    name = re.search(r"pipelines\.(\w+)", block)[1]
    assert list(folder.glob(results[name])), done.stdout


def test_what_people_do_with_a_checkpoint_takes_five_lines_at_most():
    chapter = PAGES["checkpoints.md"].partition("## What people do with one")[2].partition("\n## ")[0]
    code = re.findall(r"```\w+\n(.*?)```", chapter, re.DOTALL)
    assert len(code) == 5
    assert all(len(list(filter(None, block.splitlines()))) <= 5 for block in code)


def test_the_differences_between_searches_are_those_of_the_shipped_table(capsys):
    page = PAGES["results/equal-cost.md"]
    (block,), (printed,) = blocks(page, "python"), blocks(page, "text")
    exec(compile(block, "equal-cost.md", "exec"), {})
    assert capsys.readouterr().out == printed


@pytest.mark.nightly
def test_searches_of_a_table_find_what_the_page_says(tmp_path, monkeypatch, capsys):
    table = ROOT.parent / "shared" / "data" / "nas" / "natsbench_tss_nb201.csv.gz"
    if not table.is_file():
        pytest.skip(f"needs ../shared/data/nas/{table.name}")
    (tmp_path / "natsbench_tss.csv").symlink_to(table)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(PAGES["tables.md"], "python")
    exec(compile(block, "tables.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all(f"\n    {line}\n" in PAGES["tables.md"] for line in printed)


def test_settings_exist():
    shell = re.sub(r"```.*?```", "", README + PAGES["run.md"], flags=re.DOTALL)
    settings = {s for s in re.findall(r"\b(?:[a-z]+\.)?[a-z_]+=[\w./-]+", shell) if "..." not in s}
    assert len(settings) > 5
    for setting in settings:
        compose("S0", overrides=[setting])


def test_files_exist():
    for name in re.findall(r"`((?:esformer|pipelines|callbacks|configs)/[\w./]*)`", README + CONTRIBUTING):
        assert (ROOT / name).exists(), name
    for page, text in (("README.md", README), ("CONTRIBUTING.md", CONTRIBUTING), *PAGES.items()):
        for link in re.findall(r"\]\(([\w./]+)\)", text):
            there = ROOT / "docs" / Path(page).parent / link
            assert (ROOT / link).exists() or there.exists(), f"{page}: {link}"
