"""Dissect and edit a LightningModule of your own with two callbacks: python examples/own_lightning_module.py"""

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emodissect as emo
from emodissect.demo.sketches import Sketches  # drawn faces, in place of your own images


class Net(LightningModule):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 16, 5, stride=3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
        self.hidden, self.fc = nn.Linear(3600, 64), nn.Linear(64, classes)

    def forward(self, x):
        return self.fc(self.hidden(self.conv(x)).relu())

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def loader(images: emo.ImageSet, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(images.images / 255, images.labels), batch_size=64, shuffle=shuffle)


def main() -> None:
    faces = Sketches(cache_dir="~/.cache/emodissect", train=2000, val=500, test=500).splits
    words = {"Smile": ["Happy"], "Frown": ["Sad"], "Wide Open Mouth": ["Surprise"], "Furrowed Brows": ["Angry"]}

    # During training, label the neurons of layer "hidden" after each epoch, on the validation images.
    dissect = emo.DissectNeurons("hidden", words, clip="tiny", class_names=faces.class_names, null_draws=200)
    best = ModelCheckpoint(monitor="dissect/hidden/accuracy", mode="max")  # logged metrics can be monitored
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module, trainer = Net(), Trainer(max_epochs=10, callbacks=[dissect, best], **quiet)
    trainer.fit(module, loader(faces.train, shuffle=True), loader(faces.val))
    print(dissect.dissection)

    # Any test loop can then compare an edit with the unedited network.
    chosen = dissect.dissection["hidden"].similarity > 0
    evaluate = emo.EvaluateEdit(emo.Edit("hidden", emo.Scale(1.5)(chosen)))
    Trainer(callbacks=[evaluate], **quiet).test(module, loader(faces.test), verbose=False)
    print(evaluate.comparison)


if __name__ == "__main__":
    main()
