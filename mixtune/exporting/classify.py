"""Classify an image with the model in this script's folder: python classify.py IMAGE

It needs torch, timm, Pillow and safetensors alone, and prepares an image as the training did.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

SHOWN = 5  # classes


def read_image(path: str, channels: int, size: int) -> torch.Tensor:
    """Return an image file as uint8 (channels, size, size): upright, over white, its centre resized."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits a pixel
        levels = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
        image = Image.frombytes("L", image.size, bytes((levels / 257).round().to(torch.uint8).tolist()))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB").convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, channels).permute(2, 0, 1)


def classify(path: str, folder: Path) -> list[tuple[str, float]]:
    """Return the classes and their probabilities, the most probable first."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    data = config["pretrained_cfg"]
    mean, std = (torch.tensor(data[name]).view(-1, 1, 1) for name in ("mean", "std"))
    pixels = read_image(path, data["input_size"][0], data["input_size"][-1]).float() * (1.0 / 255.0)
    with torch.inference_mode():
        probabilities = model.eval()((pixels - mean).div(std)[None]).softmax(dim=1)[0].tolist()
    return sorted(zip(config["label_names"], probabilities, strict=True), key=lambda pair: -pair[1])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python classify.py IMAGE")
    for name, probability in classify(sys.argv[1], Path(__file__).resolve().parent)[:SHOWN]:
        print(f"{100 * probability:5.1f} %  {name}")
