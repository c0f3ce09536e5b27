"""Dense prediction: a small head on an ESFormer's four feature maps learns, in about a minute, which shape is where.

    python docs/segmentation.py [CHECKPOINT or name, by default esformer_s0]

The images are made here: discs, squares and crosses of any colour and size on noise. A name starts from random
weights, a checkpoint of yours from trained ones.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esformer

CLASSES = ("background", "disc", "square", "cross")
SIZE = 96  # pixels; any multiple of 32


def make_images(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images, count x 3 x size x size, and the class of each of their pixels, count x size x size."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    images, labels = draw(3, size, size), torch.zeros(count, size, size, dtype=torch.long)
    rows, columns = torch.arange(size).view(1, -1, 1), torch.arange(size).view(1, 1, -1)
    for _ in range(3):  # shapes an image; later ones hide earlier ones
        y, x = (rows - size * draw(1, 1)).abs(), (columns - size * draw(1, 1)).abs()
        radius = size * (0.1 + 0.15 * draw(1, 1))
        square = (y < radius) & (x < radius)
        shapes = [y.square() + x.square() < radius.square(), square, square & ((y < radius / 3) | (x < radius / 3))]
        kind = torch.randint(len(shapes), (count,), generator=generator)
        where = torch.stack(shapes, dim=1)[torch.arange(count), kind]
        images = torch.where(where[:, None], draw(3, 1, 1) + 0.3 * (images - 0.5), images)
        labels = torch.where(where, (kind + 1).view(-1, 1, 1), labels)
    return (images - 0.5) / 0.3, labels


class Segmenter(nn.Module):
    """A backbone and a head like that of Feature Pyramid Networks: B, 3, H, W -> B, classes, H, W."""

    def __init__(self, backbone: nn.Module, classes: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(chs, width, 1) for chs in backbone.feature_info.channels())
        self.classify = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        maps = [layer(x) for layer, x in zip(self.lateral, self.backbone(images), strict=True)]  # strides 4, 8, 16, 32
        top = maps.pop()
        for x in reversed(maps):  # from coarse to fine
            top = x + F.interpolate(top, size=x.shape[-2:], mode="bilinear")
        return F.interpolate(self.classify(top), size=images.shape[-2:], mode="bilinear")


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss, and mean over the classes of intersection over union."""
    network.eval()
    logits = network(images)
    found = logits.argmax(dim=1)
    ious = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in range(len(CLASSES))]
    return F.cross_entropy(logits, labels).item(), torch.stack(ious).nanmean().item()


def main(start: str = "esformer_s0", steps: int = 150, batch: int = 16, size: int = SIZE) -> list[tuple[float, float]]:
    """Train the head and the backbone; gives loss and mean IoU on images never trained on, before and after."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    unseen = make_images(64, size, generator)
    backbone = esformer.load(start, features_only=True, img_size=size)
    network = Segmenter(backbone, len(CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    results = [evaluate(network, *unseen)]
    for step in range(steps):
        images, labels = make_images(batch, size, generator)
        loss = F.cross_entropy(network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step} of {steps}: loss {loss:.3f}")
    results.append(evaluate(network, *unseen))
    for when, (loss, iou) in zip(("before", "after"), results, strict=True):
        print(f"{when}: loss {loss:.3f}, mean IoU {iou:.3f}")
    return results


if __name__ == "__main__":
    main(*sys.argv[1:2])
