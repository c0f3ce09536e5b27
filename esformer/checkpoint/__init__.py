"""Weights files: what is in one, how each kind is read without executing anything in it, and from file to network."""

from esformer.checkpoint.content import Checkpoint, CheckpointError, save_weights
from esformer.checkpoint.files import open_checkpoint, read
from esformer.checkpoint.loading import load

__all__ = ["Checkpoint", "CheckpointError", "load", "open_checkpoint", "read", "save_weights"]
