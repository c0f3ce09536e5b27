"""Networks of other spaces than the ESFormers' go the whole way: trained, killed, loaded, evaluated, exported."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from cpu_sync_batchnorm import SYNCED_TRAIN
from toy import Toy

import esformer
from esformer.benchmarks import spaces
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.checkpoint import open_checkpoint, read
from esformer.data.datamodule import ImageDataModule, SampleIndex, collate
from esformer.data.datasets import DataConfig
from esformer.errors import ESFormerError
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule
from pipelines import evaluate, export, report, runs, train

NOTATION = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('skip_connect', 0), ('dil_conv_3x3', 1), "
    "('avg_pool_3x3', 0), ('skip_connect', 1), ('skip_connect', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 1), ('skip_connect', 0), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
SMALL = GeneArchitecture("darts", NOTATION, channels=4, layers=3)
SHORT = ["recipe.epochs=2", "recipe.batch_size=32", "data.limit=64", "trainer.accelerator=cpu", "wandb.mode=disabled"]
DARTS = ["recipe=darts", "data=digits", *SHORT]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of DARTS, trained for two epochs."""
    folder = tmp_path_factory.mktemp("darts")
    SMALL.save(folder / "architecture.yaml")
    summary = train.main([f"genotype={folder / 'architecture.yaml'}", *DARTS, f"run.dir={folder / 'run'}"])
    return folder, summary


def test_what_a_run_leaves(trained):
    folder, summary = trained
    assert (summary["size"], summary["ema_top1"]) == ("darts", None) and summary["params"] < 20_000
    found = open_checkpoint(folder / "run/checkpoints/last.ckpt")
    assert (found.genotype, found.num_classes, found.img_size, found.averaged) == (SMALL, 10, (32, 32), None)
    assert found.recipe["optimizer"] == "sgd" and found.metrics["val/top1"] == summary["top1"]
    content = read(folder / "run/checkpoints/last.ckpt")
    towers = [name for name in content["state_dict"] if name.startswith("model.auxiliary.")]
    assert towers and not [name for name in found.raw if "auxiliary" in name]
    (state,) = content["optimizer_states"]
    assert all(set(one) == {"momentum_buffer"} for one in state["state"].values())
    assert not (folder / "run/genotype.png").exists()


@pytest.mark.nightly
def test_a_training_that_was_killed_ends_with_the_same_weights(trained, tmp_path, monkeypatch):
    folder, _ = trained
    command = [f"genotype={folder / 'architecture.yaml'}", *DARTS, f"run.dir={tmp_path}"]
    whole, steps = ESFormerModule.training_step, []

    def killed(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == 4:  # in the second epoch
            raise RuntimeError("killed")
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(ESFormerModule, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train.main(command)
    monkeypatch.setattr(ESFormerModule, "training_step", whole)
    train.main(command)
    ours, theirs = (read(run / "checkpoints/last.ckpt") for run in (tmp_path, folder / "run"))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert (tmp_path / "metrics.csv").read_text() == (folder / "run/metrics.csv").read_text()


def test_loaded_it_is_as_good_as_it_was(trained):
    folder, summary = trained
    network = esformer.load(folder / "run/checkpoints/last.ckpt")
    assert not network.training and (network.genotype, network.num_classes, network.in_chans) == (SMALL, 10, 3)
    data = ImageDataModule(DataConfig("digits", None, 32, 10, [0.305] * 3, [0.376] * 3, crop_pct=1.0), Recipe())
    data.setup("fit")
    batch = collate([data.val_set[SampleIndex(0, i, i)] for i in range(360)])
    with torch.no_grad():
        right = (network(data.normalise(batch.images)).argmax(1) == batch.targets).float().mean().item()
    assert right == pytest.approx(summary["top1"])


@pytest.mark.parametrize("asked", [{"img_size": 64}, {"num_classes": 3}, {"features_only": True}, {"in_chans": 1}])
def test_loaded_it_is_what_it_was(trained, asked):
    checkpoint = trained[0] / "run/checkpoints/last.ckpt"
    with pytest.raises(ESFormerError, match=f"which is loaded as it was trained: leave {next(iter(asked))} out"):
        esformer.load(checkpoint, **asked)
    esformer.load(checkpoint, img_size=32, num_classes=10)


def test_evaluated_reported_and_listed(trained, capsys, tmp_path):
    folder, summary = trained
    found = evaluate.main([str(folder / "run/checkpoints/last.ckpt"), "trainer.accelerator=cpu", f"--out={tmp_path}"])
    assert found["top1"] == pytest.approx(summary["top1"])
    assert (found["size"], found["params"]) == ("darts", summary["params"])
    report.main([str(folder / "run")])
    page = (folder / "run/report.html").read_text()
    assert "A network of space darts" in page and "cannot be shown" not in page
    runs.main([str(folder)])
    assert "finished" in capsys.readouterr().out


ONNX = pytest.param("onnx", marks=pytest.mark.nightly)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["safetensors", "torch-export", ONNX])
def test_exports_compute_the_same(trained, kind, tmp_path):
    suffix = {"torch-export": ".pt2"}.get(kind, f".{kind}")
    out = tmp_path / f"small{suffix}"
    found = export.main([str(trained[0] / "run/checkpoints/last.ckpt"), "--to", kind, "--out", str(out)])
    assert found["largest_difference"] <= 1e-5 and Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    card = out.with_name(f"{out.name}.md").read_text()
    assert card.startswith("# Network of space darts, 10 classes") and Path(found["picture"]).name in card
    if kind == "safetensors":
        assert esformer.load(out).genotype == SMALL


def test_timm_cannot_build_it(trained, tmp_path):
    checkpoint, out = str(trained[0] / "run/checkpoints/last.ckpt"), str(tmp_path / "x")
    with pytest.raises(ESFormerError, match="network of space darts, which timm cannot build"):
        export.main([checkpoint, "--to", "timm-folder", "--out", out])


def test_a_space_of_somebody_trains_and_loads(tmp_path, monkeypatch):
    monkeypatch.setitem(spaces._SPACES, "toy", Toy)
    GeneArchitecture("toy", "8").save(tmp_path / "toy.yaml")
    plain = ["recipe=quick", "recipe.ema=true", "data=digits", *SHORT, f"run.dir={tmp_path / 'run'}"]
    summary = train.main([f"genotype={tmp_path / 'toy.yaml'}", *plain])
    network = esformer.load(summary["checkpoint"])
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10) and summary["ema_top1"] is not None
    assert "averaged" in str(open_checkpoint(summary["checkpoint"]).describe()["weights"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["recipe.freeze=1"], "recipe.freeze is 1, which only ESFormers know how to follow"),
        (["recipe.optimizer=adamw", "recipe.layer_decay=0.5"], "set recipe.layer_decay=1"),
        (["recipe.clip_mode=agc"], "recipe.clip_mode=agc spares the classifier, which only ESFormers name"),
        (["trainer.grad_checkpointing=true"], "trainer.grad_checkpointing=true is for ESFormers"),
        (["--speed"], "--speed compares ESFormers, and this network is of space darts"),
        (["data.img_size=48"], "set recipe.auxiliary=0"),
        (["genotype=esformer_s0"], "ESFormers have no auxiliary tower; set recipe.auxiliary=0"),
        (["genotype=esformer_s0", "recipe.auxiliary=0"], "set recipe.drop_path_schedule=depth"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_done(trained, tmp_path, settings, sentence):
    given = [f"genotype={trained[0] / 'architecture.yaml'}", *DARTS, f"run.dir={tmp_path / 'run'}", *settings]
    with pytest.raises(ESFormerError) as refused:
        train.main(given)
    assert sentence in str(refused.value) and not (tmp_path / "run").exists()


def test_a_training_starts_from_esformers_alone(trained):
    start = trained[0] / "run/checkpoints/last.ckpt"
    with pytest.raises(ESFormerError, match="network of space darts; a training starts from ESFormers alone"):
        train.main(["--from", str(start), "data=digits"])


def test_another_network_needs_another_folder(trained, tmp_path):
    genotype, run = tmp_path / "architecture.yaml", tmp_path / "run"
    shutil.copytree(trained[0] / "run", run)
    (run / "summary.json").unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(trained[0] / "architecture.yaml"), str(genotype)))
    GeneArchitecture("darts", NOTATION, channels=6, layers=3).save(genotype)
    with pytest.raises(ESFormerError, match="trains another genotype; choose another run.dir"):
        train.main([f"genotype={genotype}", *DARTS, f"run.dir={run}"])


@pytest.mark.nightly
def test_a_dry_run_tries_it(trained, tmp_path):
    given = [f"genotype={trained[0] / 'architecture.yaml'}", *DARTS, f"run.dir={tmp_path / 'run'}", "--dry-run"]
    found = train.main(given)
    assert (found["genotype"], found["params"]) == ("darts", trained[1]["params"]) and not (tmp_path / "run").exists()


@pytest.mark.nightly
def test_two_processes_train_as_one(warm, trained, digits_in_folders, tmp_path):
    """At a small learning rate: norms over the few values of so small a network's tower make much of roundings."""
    images = ["data=folder", f"data.root={digits_in_folders(233, 33)}", "data.img_size=32", "data.workers=0"]
    command = [SYNCED_TRAIN, f"genotype={trained[0] / 'architecture.yaml'}", "recipe=darts", *images]
    command += ["recipe.epochs=2", "recipe.batch_size=40", "recipe.lr=0.0001", "trainer.log_every=1"]
    command += ["trainer.accelerator=cpu", "trainer.sync_batchnorm=true", "wandb.mode=disabled"]
    warm.start([*command, f"run.dir={tmp_path / 'one'}"]).finish()
    for process in warm.start_ranks(2, [*command, f"run.dir={tmp_path / 'two'}"]):
        process.finish()

    def column(run, file, name):
        return [float(row[name]) for row in csv.DictReader((tmp_path / run / file).open())]

    for file, name, rel in (("metrics.csv", "train/loss", 1e-5), ("steps.csv", "grad_norm", 5e-3)):
        assert column("two", file, name) == pytest.approx(column("one", file, name), rel=rel), name
    moments = []
    for run in ("one", "two"):
        (state,) = read(tmp_path / run / "checkpoints/last.ckpt")["optimizer_states"]
        moments.append(torch.cat([one["momentum_buffer"].flatten() for one in state["state"].values()]))
    assert (moments[0] - moments[1]).norm() <= 5e-2 * moments[0].norm()
