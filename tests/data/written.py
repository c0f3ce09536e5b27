"""Real images, written as folders and as shards of every kind."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

from esformer.data.datasets import DataConfig, resolve
from esformer.data.images import build


def digits():
    """Eighteen training and six validation digits of three classes, as (name, file, class)."""
    pixels, labels = load_digits(n_class=3, return_X_y=True)
    found = []
    for i in range(24):
        file = io.BytesIO()
        image = Image.fromarray((pixels[i].reshape(8, 8) * 15.9).astype(np.uint8))
        image.save(file, ("JPEG", "PNG", "WEBP")[i // 8])
        found.append((f"{i:03d}.{('jpg', 'png', 'WEBP')[i // 8]}", file.getvalue(), int(labels[i])))
    return found[:18], found[18:]


def write_tars(root, images, names=("train-{}.tar", "val-{}.tar"), each=7, label="cls"):
    for split, pattern in zip(images, names, strict=True):
        for number, start in enumerate(range(0, len(split), each)):
            path = root / pattern.format(f"{number:04d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for name, file, klass in split[start : start + each]:
                    text = str(klass) if label == "cls" else json.dumps({"label": klass, "class_name": "x"})
                    parts = [(name, file), (f"{Path(name).stem}.{label}", text.encode())]
                    for part, content in parts if klass else reversed(parts):  # in any order
                        member = tarfile.TarInfo(f"photos/{part}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return root


def table(split, plain=False):
    files = [file if plain else {"bytes": file, "path": name} for name, file, _ in split]
    return pa.table({"image": pa.array(files), "label": pa.array([label for *_, label in split])})


def write_parquet(root, images, names=("data/train-{}.parquet", "data/validation-{}.parquet"), each=7, **settings):
    for split, pattern in zip(images, names, strict=True):
        for number, start in enumerate(range(0, len(split), each)):
            path = root / pattern.format(f"{number:05d}-of-00003")
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(split[start : start + each], **settings), path, row_group_size=3)
    return root


def write_folder(root, images):
    for split, name in zip(images, ("train", "val"), strict=True):
        for file_name, file, label in split:
            (root / name / str(label)).mkdir(parents=True, exist_ok=True)
            (root / name / str(label) / file_name).write_bytes(file)
    return root


def pixels(image):
    return np.asarray(image)


def to_tensor(image):
    return torch.from_numpy(np.array(image))


def opened(root, train=True, transform=pixels, **settings):
    config = resolve(DataConfig("folder", str(root), **{"img_size": 32, "num_classes": None} | settings))
    return build(config, train, transform)


def contents(dataset):
    return sorted((image.tobytes(), label) for image, label in (dataset[i] for i in range(len(dataset))))
