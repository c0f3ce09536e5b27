"""The picture of what is taken for what, with few classes and with many."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from esformer.plots.confusion import draw_confusion


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a matrix; gives the words in the cells and at the side, none of them cut off, and the picture."""

    def drawn(confusion, names):
        figures = []
        save = Figure.savefig
        monkeypatch.setattr(
            Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how))
        )
        draw_confusion(confusion, names, "the title", tmp_path / "c.png")
        [ax] = [ax for ax in figures[0].axes if ax.get_ylabel() == "class"]
        cells = {text.get_position(): text.get_text() for text in ax.texts}
        sides = [label.get_text() for label in ax.get_yticklabels()]
        page = figures[0].bbox
        for text in figures[0].findobj(Text) if len(sides) == len(names) else ():  # else there are ticks beyond the end
            box = text.get_window_extent()
            inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
            assert inside or not text.get_text(), text.get_text()
        return cells, sides, Image.open(tmp_path / "c.png").convert("RGB")

    return drawn


def test_few_classes_have_numbers_and_names(drawn):
    confusion = np.diag(np.arange(10, 20))
    confusion[2, 7] = 3
    cells, sides, _ = drawn(confusion, [f"thing {i}" for i in range(9)] + ["a name that is far too long to stand here"])
    assert cells == {(i, i): str(10 + i) for i in range(10)} | {(7, 2): "3"}  # x is what it was taken for
    assert sides == [f"thing {i}" for i in range(9)] + ["a name that is far too …"]


def test_a_thousand_classes_are_a_map_on_which_each_is_seen(drawn):
    cells, sides, picture = drawn(np.eye(1000, dtype=np.int64), [f"class {i}" for i in range(1000)])
    assert cells == {}
    assert len(sides) < 20
    dark = (np.asarray(picture)[..., 0] < 60).any(1)
    assert dark.sum() >= 1000  # a row of pixels a class


def test_classes_without_images_are_white(drawn):
    cells, sides, _ = drawn(np.zeros((3, 3), np.int64), ["a", "b", "c"])
    assert cells == {}
    assert sides == ["a", "b", "c"]


def test_names_are_no_formulas(drawn):
    names = ["$x^$", "a\n\x1b[31mb", "[b]"]
    assert drawn(np.eye(3, dtype=np.int64), names)[1] == ["$x^$", "a\\n\\x1b[31mb", "[b]"]
