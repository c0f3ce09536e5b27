"""Where results of a checkpoint, or of a name, go."""

from pathlib import Path

import pytest

from pipelines.runtime.checkpoint import beside


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("esformer_s0", "esformer_s0.onnx"),
        ("timm:efficientformerv2_s0", "efficientformerv2_s0.onnx"),
        ("wandb:me/esformer/checkpoint-1a2b:best", "checkpoint-1a2b-best.onnx"),
    ],
)
def test_results_of_a_name_lie_here_under_that_name(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert beside(name, ".onnx") == Path(expected)
