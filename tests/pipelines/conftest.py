"""Images and a network that train in moments."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from esformer.choices import choices_of
from esformer.genotype import Genotype


@pytest.fixture(autouse=True)
def _one_batch_is_timed(monkeypatch):
    """Else an evaluation times them for five seconds."""
    monkeypatch.setattr("pipelines.runtime.evaluating.SECONDS", 0.01)


@pytest.fixture
def digits_in_folders(tmp_path):
    """Write real images of digits: the first ones for validation, the others for training."""

    def write(total, validation):
        images, labels = load_digits(return_X_y=True)
        for i, (pixels, label) in enumerate(zip(images[:total], labels[:total], strict=True)):
            where = tmp_path / "images" / ("val" if i < validation else "train") / str(label)
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8)).save(where / f"{i}.png")
        return tmp_path / "images"

    return write


@pytest.fixture(scope="session")
def smallest(tmp_path_factory):
    """The file of a genotype whose genes all have the first of their values."""
    stages = [[{gene: values[0] for gene, values in block.items()} for block in s] for s in choices_of("S0").options]
    path = tmp_path_factory.mktemp("genotype") / "smallest.yaml"
    Genotype.from_dict({"genotype": 1, "space": "S0", "stages": stages}).save(path)
    return path
