"""Checkpoints that W&B keeps, fetched by wandb's own client from a server on loopback."""

import pytest
import torch
import wandb
from wandb_server import serving_artifact

import esformer
from esformer.checkpoint import CheckpointError
from esformer.checkpoint.artifacts import fetch

NAME = "me/digits/checkpoint-1:best"


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A login, and folders of W&B's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))

    def at(address):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb.teardown()

    yield at
    wandb.teardown()


def test_a_checkpoint_by_its_name(online, trained, known):
    with serving_artifact({"best.ckpt": trained.read_bytes()}) as (address, fetched):
        online(address)
        found = esformer.load(f"wandb:{NAME}").state_dict()
        esformer.load(f"wandb:{NAME}")
        assert fetched.count("best.ckpt") == 1
    assert all(torch.equal(value, found[name]) for name, value in known.weights(True).items())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"genotype.yaml": b"genotype: 1"}, "must hold one file of weights; it has none"),
        ({"a.ckpt": b"x", "b.ckpt": b"y"}, "must hold one file of weights; it has a.ckpt, b.ckpt"),
        ({"best.ckpt": b"x"}, "best.ckpt"),
    ],
)
def test_an_artifact_that_is_no_checkpoint(online, files, said):
    with serving_artifact(files) as (address, _):
        online(address)
        with pytest.raises(CheckpointError, match=said):
            esformer.load(f"wandb:{NAME}")


@pytest.mark.nightly  # W&B's client waits for a server
def test_what_is_not_there(online):
    with serving_artifact({}) as (address, _):
        online(address)
        with pytest.raises(CheckpointError, match=r"^wandb:me/digits/checkpoint-2:best cannot be fetched: "):
            fetch("me/digits/checkpoint-2:best")
    with pytest.raises(CheckpointError, match="cannot be fetched: "):  # nor the server
        fetch("me/digits/checkpoint-3:best")


@pytest.mark.parametrize("name", ["", "x", "me/checkpoint-1:best", "me/digits/:best", "me/digits/x:", "/digits/x:best"])
def test_what_is_no_name(name):
    with pytest.raises(CheckpointError, match="is no artifact; write wandb:ENTITY/PROJECT/NAME:ALIAS"):
        fetch(name)


def test_without_a_login(online, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))  # where .netrc would be
    with pytest.raises(CheckpointError, match="cannot be fetched: No API key configured"):
        fetch(NAME)
