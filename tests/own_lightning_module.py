"""A user's LightningModule, which test_own_module.py trains, dissects and edits by config."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class LitNet(LightningModule):
    """(x, y) batches, its own optimizer and metric names; its head can be recognised by the bias that it sets."""

    def __init__(self, num_classes: int = 7, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(16), nn.ReLU())
        self.fc = nn.Linear(16, num_classes)
        self.body(torch.zeros(2, 1, 40, 40))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.steps += 1
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class LitFaces(LightningDataModule):
    """Three loaders of (float image, label) pairs; two classes that differ in brightness."""

    def __init__(self, images: int = 60) -> None:
        super().__init__()
        self.images = images

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.images) % 2
        pixels = 0.4 * torch.rand(self.images, 1, 48, 48, generator=generator) + 0.5 * labels[:, None, None, None]
        self.data = TensorDataset(pixels, labels)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.data, batch_size=8)]

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=8)
