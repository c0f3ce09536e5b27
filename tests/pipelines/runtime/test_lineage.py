"""What Weights & Biases is told of files: which run made them, and which began from them."""

import logging

import pytest
import torch
import wandb
from test_tracking_online import said, session

from callbacks.search import send_genotype
from configs.compose import compose
from configs.schema import ConfigError
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.recipe import Recipe
from pipelines import export, search, train
from pipelines.runtime import lineage, tracking
from pipelines.runtime.loggers import finish
from pipelines.runtime.run_folder import RunFolder
from pipelines.runtime.workspace import COLUMNS


def test_a_training_says_what_it_begins_from(tmp_path, server, caplog):
    searched = tmp_path / "searched"
    config = compose("S0", True, [f"run.dir={searched}", "wandb.project=digits", "wandb.checkpoints=true"])
    run = RunFolder.of("search", config, []).open(config)
    with run:
        made = tracking.loggers(config, run)
        Genotype.shipped("esformer_s0").save(run.genotype)
        send_genotype(made[0], run.genotype, {"sed": 1.0})
        run.checkpoints.mkdir()
        run.best.write_bytes(b"weights")
        lineage.send_checkpoints(made, {"best": run.best, "last": run.last})
        finish(made, 0)
    wandb.teardown()
    name = run.wandb_id.read_text()
    assert {said["artifactTypeName"] for said in server.made.values()} == {"genotype", "model"}
    caplog.set_level(logging.INFO, "esformer")
    for number, source in enumerate((run.genotype, run.best, f"wandb:me/digits/checkpoint-{name}:best")):
        session(tmp_path / f"trained-{number}", source=str(source))
    used = [other.used for other in server.runs.values()]
    assert used == [[], [f"genotype-{name}:v0"], *[[f"checkpoint-{name}:v0"]] * 2]
    assert not any("begins from" in line for line in said(caplog))
    session(tmp_path / "trained-of-nothing", source="wandb:me/digits/checkpoint-0:best")
    assert any(line.startswith("W&B cannot be told that this run begins from me/digits/") for line in said(caplog))


@pytest.mark.nightly
def test_from_search_to_export_is_a_chain(tmp_path, server):
    searched, trained, tuned = (tmp_path / name for name in ("searched", "trained", "tuned"))
    few = ["search.total=60", "search.start_length=10", "search.phase_length=10", "search.seeds=1"]
    short = ["data.limit=128", "recipe.epochs=1", "recipe.batch_size=64", "recipe.warmup_epochs=0"]
    short += ["trainer.accelerator=cpu", "wandb.checkpoints=true"]
    search.main(["--quick", *few, f"run.dir={searched}"])
    train.main(["--quick", *short, f"genotype={searched}/genotype.yaml", f"run.dir={trained}"])
    train.main(["--quick", *short, "--from", f"{trained}/checkpoints/best.ckpt", f"run.dir={tuned}"])
    export.main([f"{tuned}/checkpoints/best.ckpt", "--to", "safetensors", "--wandb", "esformer"])
    names = [(folder / "wandb_id").read_text() for folder in (searched, trained, tuned)]
    runs = [server.runs[name] for name in names]
    assert [run.used for run in runs] == [[], [f"genotype-{names[0]}:v0"], [f"checkpoint-{names[1]}:v0"]]
    (sent,) = [run for name, run in server.runs.items() if name not in names]
    assert sent.used == [f"checkpoint-{names[2]}:v0"]
    shown = {column.removesuffix(".value").partition(":")[2] for column in COLUMNS if column.startswith("config:")}
    for run in runs:
        assert run.exit_code == 0 and shown <= {*run.config}
    assert len({run.config["params"]["value"] for run in runs[:2]}) == 1


def test_what_is_not_of_another_run_is_not_looked_for(tmp_path):
    Genotype.shipped("esformer_s0").save(tmp_path / "genotype.yaml")
    for source in ("esformer_s0", str(tmp_path / "genotype.yaml"), "/genotype.yaml"):
        assert lineage.artifact_of(source) is None
    for damaged in (b"\xff", b"0123456789", b""):
        (tmp_path / "wandb_id").write_bytes(damaged)
        assert lineage.artifact_of(str(tmp_path / "genotype.yaml")) is None
    (tmp_path / "wandb_id").write_text("0a1b2c3d")
    assert lineage.artifact_of(str(tmp_path / "genotype.yaml")) == "genotype-0a1b2c3d:latest"
    assert lineage.artifact_of(str(tmp_path / "checkpoints/best.ckpt")) == "checkpoint-0a1b2c3d:best"
    assert lineage.artifact_of(str(tmp_path / "checkpoints/other.ckpt")) is None


@pytest.fixture
def checkpoint(tmp_path, smallest):
    """Of a run that W&B knows."""
    run = RunFolder(tmp_path / "trained", "")
    run.checkpoints.mkdir(parents=True)
    run.wandb_id.write_text("0a1b2c3d")
    genotype = Genotype.load(smallest)
    about = dict(genotype=genotype.to_dict(), recipe=Recipe().to_dict(), num_classes=3, img_size=64, format=3)
    weights = {f"model.{name}": value for name, value in ESFormer(genotype, 3, img_size=64).state_dict().items()}
    about |= {"provenance": {}, "version": "0.1.0"}
    data = dict(name="folder", classes=["a", "b", "c"], mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    data |= dict(interpolation="bilinear", crop_pct=0.875)
    torch.save({"hyper_parameters": about, "state_dict": weights, "metrics": {}, "data": data}, run.best)
    return run.best


def test_an_export_is_sent_as_made_from_its_checkpoint(checkpoint, server, capsys):
    server.add("checkpoint-0a1b2c3d", "best")
    for out, size in (("a.safetensors", "64"), ("b.safetensors", "96")):
        given = [str(checkpoint), "--to", "safetensors", "--wandb", "digits", "--img-size", size]
        made = export.main([*given, "--out", str(checkpoint.with_name(out))])
        assert capsys.readouterr().out.endswith(f"sent to {made['sent']}\n")
    first, second = server.runs.values()
    for run, size in ((first, 64), (second, 96)):
        assert (run.about["jobType"], run.exit_code, run.used) == ("export", 0, ["checkpoint-0a1b2c3d:v0"])
    names = [name for name, said in server.made.items() if said["artifactCollectionName"].startswith("safetensors-")]
    assert len(names) == 2 and len({name.partition(":")[0] for name in names}) == 1
    assert {"a.safetensors", "a.safetensors.md", "a.safetensors.png"} <= server.stored


def test_an_export_that_cannot_be_sent_is_there_all_the_same(checkpoint, server, monkeypatch):
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 2.0)
    server.down = True
    given = [str(checkpoint), "--to", "safetensors", "--wandb", "digits"]
    with pytest.raises(ESFormerError, match="best.safetensors is written, and could not be sent to Weights"):
        export.main(given)
    assert checkpoint.with_suffix(".safetensors").exists()
    checkpoint.with_suffix(".safetensors").unlink()
    with pytest.raises(ConfigError, match="project is 'a/b'; it must be letters"):
        export.main([*given[:-1], "a/b"])
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    wandb.teardown()
    with pytest.raises(ConfigError, match="sending to Weights & Biases needs a login; type `wandb login`"):
        export.main(given)
    assert not checkpoint.with_suffix(".safetensors").exists()
