"""A genotype as a picture: the network block by block."""

from pathlib import Path
from typing import Any

import numpy as np

from esformer.genotype import Block, ConvBlock, Genotype

FFNS = {"ibn": "#8ecae6", "convnext": "#ffb703", "bottleneck": "#95d5b2"}
ATTENTION = "#cdb4db"
FFN_NAMES = {"ibn": "IBN", "convnext": "ConvNeXt", "bottleneck": "bottleneck"}
GREY = "0.85"
TIMES = "\N{MULTIPLICATION SIGN}"
COLUMN, TALL = 0.46, 3.4
"""Inches: a column of the drawing; its widest block."""
GAP, END = 0.6, 0.9
"""Columns: between two stages; the stem and the classifier."""


def draw_genotype(genotype: Genotype, path: Path, title: str) -> None:
    """The network block by block, in the order in which an image passes it.

    A box is as high as its block is wide in channels. A Transformer layer has two boxes: attention, then its FFN.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

    # x in columns, y in channels, the flow of the image at y = 0
    widest = max(block.out for block in genotype.blocks())
    inch = widest / TALL
    top, channels, expansion, bottom = (
        np.array([0.7, -0.3, -0.55, -0.75]) * inch + np.array([1, -1, -1, -1]) * widest / 2
    )
    length = END + sum(GAP + sum(map(_columns, stage)) for stage in genotype.stages) + GAP + END
    width, height = COLUMN * length, (top - bottom) / inch
    page = (width + 1.65, height + 0.95)
    figure = Figure(figsize=page)
    ax = figure.add_axes((1.1 / page[0], 0.5 / page[1], width / page[0], height / page[1]))
    ax.set(xlim=(0, length), ylim=(bottom, top))
    ax.axis("off")

    def text(x: float, y: float, words: str, size: float = 8, ha: str = "center", **how: Any) -> None:
        ax.text(x, y, words, fontsize=size, ha=ha, **({"va": "center"} | how))

    def box(x: float, columns: float, height: float, colour: str, words: str, **how: Any) -> None:
        ax.add_patch(Rectangle((x, -height / 2), columns, height, facecolor=colour, edgecolor="black", clip_on=False))
        text(x + columns / 2, 0, words, **how)

    flow = FancyArrowPatch((-0.9, 0), (length + 0.9, 0), arrowstyle="-|>", mutation_scale=12, color="black", zorder=0.5)
    flow.set_clip_on(False)
    ax.add_patch(flow)
    text(-1, 0, "image", 9, "right")
    text(END - 0.3, channels, "channels (height)", 9, "right")
    text(END - 0.3, expansion, "expansion", 9, "right")
    box(0, END, inch, GREY, "stem", rotation=90)
    x = END
    for number, stage in enumerate(genotype.stages):
        x += GAP
        columns = sum(map(_columns, stage))
        ax.add_patch(Rectangle((x - 0.12, bottom), columns + 0.24, top - bottom, facecolor="0.95", zorder=0))
        heading = f"stage {number + 1}\n1/{4 * 2**number} resolution"
        text(x + columns / 2, top - 0.1 * inch, heading, 9, va="top", linespacing=1.3)
        for block in stage:
            if isinstance(block, ConvBlock):
                box(x + 0.06, 0.88, block.out, FFNS[block.ffn], f"{block.kernel}{TIMES}{block.kernel}")
            else:
                box(x + 0.06, 1.06, block.out, ATTENTION, f"{block.heads}{TIMES}{block.head_dim}")
                box(x + 1.12, 0.82, block.out, FFNS[block.ffn], f"3{TIMES}3")
            middle = x + _columns(block) / 2
            text(middle, channels, str(block.out))
            text(middle, expansion, f"{'÷' if block.ffn == 'bottleneck' else TIMES}{block.ratio}")
            x += _columns(block)
    box(x + GAP, END, inch, GREY, "classifier", rotation=90)

    present = {block.ffn for block in genotype.blocks()}
    kinds = {f"{FFN_NAMES[ffn]} FFN: kernel": colour for ffn, colour in FFNS.items() if ffn in present}
    kinds[f"attention of a Transformer layer: heads {TIMES} key channels"] = ATTENTION
    handles = [Patch(facecolor=colour, edgecolor="black", label=label) for label, colour in kinds.items()]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / page[1], va="top")
    figure.savefig(path, dpi=110)


def _columns(block: Block) -> int:
    """A Transformer layer takes two columns of the drawing: one for its attention, one for its FFN."""
    return 1 if isinstance(block, ConvBlock) else 2
