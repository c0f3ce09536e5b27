"""The picture of images that are taken for what they are not."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from esformer.plots.mistakes import draw_mistakes
from esformer.training.evaluation import Mistakes

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)


@pytest.mark.parametrize("count", [1, 7, 24])
def test_each_image_as_it_was_with_its_classes_below(count, monkeypatch, tmp_path):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how)))
    pixels = torch.rand(count, 3, 8, 12)
    shown = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    own, other = torch.arange(count) % 3, (torch.arange(count) + 1) % 3
    mistakes = Mistakes(shown, own, other, torch.linspace(0.4, 0.9, count))
    names = ["cat", "<b>", "a name that is far too long to stand here"]
    draw_mistakes(mistakes, names, MEAN, STD, "the title", tmp_path / "m.png")
    assert len(figures[0].axes) == count and (tmp_path / "m.png").stat().st_size > 1000
    words = ["cat", "<b>", "a name that is …"]
    for place, ax in enumerate(figures[0].axes):
        (image,) = ax.get_images()
        np.testing.assert_allclose(image.get_array(), pixels[place].permute(1, 2, 0), atol=1e-6)
        confidence = f"{mistakes.confidence[place]:.0%}"
        assert ax.get_xlabel() == f"{words[place % 3]}\ntaken for {words[(place + 1) % 3]} ({confidence})"
