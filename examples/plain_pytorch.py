"""Plain PyTorch: label neurons with your words, edit them, and test the edit: python examples/plain_pytorch.py"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emodissect as emo
from emodissect.demo.sketches import Sketches  # drawn faces, in place of your own images


def train(network: nn.Module, images: emo.ImageSet, epochs: int = 15) -> None:
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(images.images, images.labels), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x / 255), y).backward()
            optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    faces = Sketches(cache_dir="~/.cache/emodissect", train=2000, val=500, test=500).splits
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(3600, 64), nn.ReLU(), nn.Linear(64, 7)),
    )
    train(network, faces.train)
    network.eval()

    # 1. What do the 64 neurons of layer "4" respond to? Without transform= the network receives values in [0, 1].
    words = ["Smile", "Frown", "Wide Open Mouth", "Furrowed Brows", "Tearful Eyes"]
    labels = emo.dissect(network, faces.train, words, layers="4", clip="tiny", null_draws=200, progress=False)
    print(labels)
    print(labels["4"][["neuron", "concept", "similarity", "q_value"]].head())

    # 2. One edit: multiply the weights of neurons with a significant label by 1.5, and divide the others by 1.5.
    edit = emo.Edit("4", emo.Scale(1.5)(labels["4"].significant))
    data = DataLoader(TensorDataset(faces.test.images / 255, faces.test.labels), batch_size=256)
    print(emo.evaluate_edit(network, edit, data))

    # 3. A study: choose from a grid of edits on validation, read test once, compare with controls, print a verdict.
    study = emo.study(
        *(network, labels, faces.val, faces.test),
        selections=[emo.Tau(0.0), emo.Fdr(0.05)],
        rules=[emo.Scale(1.25), emo.Scale(1.5), emo.Ablate()],
        controls=100,
        progress=False,
    )
    print(study.grid[["selection", "rule", "delta", "delta_low", "delta_high", "p_value", "chosen"]])
    print(study.verdict)


if __name__ == "__main__":
    main()
