"""Dissect a timm network on a folder of images by class: python examples/timm_image_folder.py [folder]"""

import sys
import tempfile
from pathlib import Path

import timm
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

import emodissect as emo


def drawn_folder(folder: Path) -> Path:
    """Drawn faces as <folder>/<class>/<n>.png, in place of your own images."""
    from emodissect.demo.sketches import Sketches

    faces = Sketches(cache_dir="~/.cache/emodissect", train=300, val=50, test=50).splits
    for row, (image, label) in enumerate(zip(faces.train.images, faces.train.labels, strict=True)):
        path = folder / faces.class_names[label] / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        to_pil_image(image).save(path)
    return folder


def main(folder: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=7)  # pretrained=True downloads
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(64),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = ImageFolder(str(folder), transform=v2.PILToTensor())  # raw images, for CLIP; transform= is for the network
    words = {"Smile": ["Happy"], "Frown": ["Sad"], "Wide Open Mouth": ["Surprise"], "Furrowed Brows": ["Angry"]}
    labels = emo.dissect(
        *(network, images, words),
        layers=["blocks.3.1.conv_pwl", "blocks.4.2.conv_pwl", "conv_head"],
        transform=transform,
        clip="tiny",
        null_draws=200,
        progress=False,
    )
    print(labels)
    print(labels.layers[["layer", "neurons", "dead", "interpretable", "significant", "accuracy", "accuracy_chance"]])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(drawn_folder(Path(temporary)))
