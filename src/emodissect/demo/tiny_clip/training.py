"""Trains the tiny CLIP on drawn faces and captions: ``python train.py experiment=tiny_clip``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from hydra.utils import instantiate
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig
from torch import Tensor, nn

from emodissect.concepts.clip_images import ClipImages
from emodissect.concepts.open_clip_model import quiet_loading
from emodissect.core.errors import UserError
from emodissect.core.tensor_files import save_tensors
from emodissect.data.images import Batch, ImageSet
from emodissect.demo.sketches import CONCEPTS, captions
from emodissect.demo.tiny_clip.figures import ZeroShot, cosines, zero_shot
from emodissect.demo.tiny_clip.model import MODEL_NAME, VOCABULARY, WEIGHTS, text_config
from emodissect.demo.tiny_clip.tokenizer import UNKNOWN, WordTokenizer, vocabulary, words_of
from emodissect.lightning.callbacks import ProgressBar
from emodissect.models.augmentation import Augmentation

log = logging.getLogger(__name__)

_LARGEST_SCALE = math.log(100)


class ContrastiveTraining(LightningModule):
    """Contrastive training of images and captions (open_clip's ``ClipLoss``).

    Each step writes new captions from the ground truth of each face. Equal captions in a batch are encoded once, and
    count as each other's negatives: the optimum of the loss, the log ratio of p(caption | image) and p(caption), is the
    same as without them.

    Args:
        tokenizer: tokenizer of the captions.
        train: the training faces, with the ``presence`` from which captions are written.
        val: the faces for zero-shot metrics after each epoch.
        class_names: prompts of the zero-shot classes.
        augment: augmentation of the images.
        learning_rate: peak learning rate, after a warm-up; followed by cosine decay to zero.
        weight_decay: AdamW's weight decay, on matrices only.
        warmup: warm-up as a fraction of the steps.
        bare: share of captions that are only a class or concept name.
        further: number of additional captions per image in a step, all only names; cheap, since few are distinct.
        forget: probability of replacing a word by the unknown token, so that unknown words become uninformative.
        seed: random seed of the captions.
    """

    def __init__(
        self,
        tokenizer: WordTokenizer,
        train: ImageSet,
        val: ImageSet,
        class_names: tuple[str, ...],
        augment: Augmentation | None = None,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        bare: float = 0.5,
        further: int = 2,
        forget: float = 0.03,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with quiet_loading(logging.WARNING):  # which would warn of random weights, as intended here
            model = open_clip.create_model(MODEL_NAME)
        self.model = model.to(memory_format=torch.channels_last)
        self.preprocess = ClipImages.of(open_clip.get_model_preprocess_cfg(self.model))
        self.loss = open_clip.ClipLoss()
        self.tokenizer = tokenizer
        self.augment = augment or Augmentation()
        self.train_images, self.val_images = train, val
        self.class_names = class_names
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.bare, self.further, self.forget = bare, further, forget
        self.rng = np.random.default_rng(seed)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The contrastive loss of one batch, averaged over its sets of captions."""
        written = [self._captions(batch, share) for share in (self.bare, *[1.0] * self.further)]
        tokens, which = torch.unique(torch.cat(written), dim=0, return_inverse=True)
        encoded = self.model.encode_text(tokens.to(self.device), normalize=True)
        seen = self.model.encode_image(self.prepared(batch.images), normalize=True)
        scale = self.model.logit_scale.exp()
        losses = [self.loss(seen, encoded[rows], scale) for rows in which.to(self.device).split(len(batch.ids))]
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ids))
        return loss

    def prepared(self, images: Tensor) -> Tensor:
        """Augmented and preprocessed images."""
        changed = self.augment(images)
        if changed.dtype != torch.uint8:
            changed = (changed * 255).round().clamp(0, 255).to(torch.uint8)
        return self.preprocess(changed).contiguous(memory_format=torch.channels_last)

    def on_train_batch_end(self, *_: Any) -> None:
        """Clamps the logit scale, as CLIP does."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _LARGEST_SCALE)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Does nothing, since the metrics need all scores at once."""

    def on_validation_epoch_end(self) -> None:
        """Logs zero-shot accuracy and mean AUROC on the validation faces."""
        figures = self.figures(self.val_images)
        self.log("val/zero_shot", figures.accuracy, prog_bar=True)
        self.log("val/auroc", figures.mean_auroc, prog_bar=True)

    def figures(self, images: ImageSet) -> ZeroShot:
        """Zero-shot metrics, with class and concept names as prompts."""
        texts = [*self.class_names, *CONCEPTS]
        training = self.model.training
        scores = cosines(self.model.eval(), self.tokenizer, self.preprocess, images, texts)
        self.model.train(training)
        of_classes, of_concepts = scores.split([len(self.class_names), len(CONCEPTS)], dim=1)
        return zero_shot(of_classes, images.labels, of_concepts, images.annotations["presence"].values, CONCEPTS)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay to zero."""
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=self.warmup,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _captions(self, batch: Batch, bare: float) -> Tensor:
        rows = self.train_images.rows_of(batch.ids.cpu())
        presence = self.train_images.annotations["presence"].values[rows].double().numpy()
        tokens = self.tokenizer(captions(presence, self.train_images.labels[rows].numpy(), self.rng, bare))
        forgotten = torch.from_numpy(self.rng.random(tokens.shape) < self.forget)
        return tokens.masked_fill(forgotten & (tokens > UNKNOWN + 1) & (tokens < self.tokenizer.end), UNKNOWN)


def caption_vocabulary(images: ImageSet, class_names: Sequence[str], times: int = 20) -> tuple[str, ...]:
    """All words in the captions of these faces and in the names of classes and concepts."""
    rng = np.random.default_rng(0)
    some = images.subset(range(min(len(images), 2000)))
    presence = some.annotations["presence"].values.double().numpy()
    written = [text for _ in range(times) for text in captions(presence, some.labels.numpy(), rng)]
    named = [word for name in (*class_names, *CONCEPTS) for word in words_of(name)]
    return tuple(dict.fromkeys((*vocabulary(written), *named)))


def save_tiny_clip(model: nn.Module, tokenizer: WordTokenizer, path: Path) -> None:
    """Writes the weights in half precision, which halves the file size, and the vocabulary next to them.

    open_clip's loader copies the weights into a full-precision model.
    """
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_tensors(state, str(path))
    tokenizer.save(path.with_name(VOCABULARY))


def train_tiny_clip(
    cfg: DictConfig,
    augment: DictConfig | None = None,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    bare: float = 0.5,
    ship: bool = False,
) -> dict[str, Any]:
    """The task behind ``train.py experiment=tiny_clip``: trains on ``data=sketches``, tests once, writes the weights.

    Args:
        cfg: the root config; its data, trainer, seed, loggers and folders are used.
        bare: share of captions that are only a name.
        ship: also replace the weights included in the package.

    Returns:
        The test metrics: ``test/zero_shot``, ``test/auroc``, and ``auroc/<concept>`` for each concept.

    Raises:
        UserError: the data has no ``presence`` to write captions from.
    """
    from emodissect.app.session import session

    with session(cfg) as run:
        splits = run.data.splits
        if "presence" not in splits.train.annotations:
            raise UserError("The tiny CLIP's captions need the ground truth of drawn faces: set data=sketches.")
        config = text_config()
        words = caption_vocabulary(splits.train, splits.class_names)
        tokenizer = WordTokenizer(words, config["context_length"], config["vocab_size"])
        training = ContrastiveTraining(
            tokenizer,
            splits.train,
            splits.val,
            splits.class_names,
            augment=instantiate(augment) if augment else None,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            bare=bare,
            seed=cfg.seed,
        )
        trainer = run.trainer([ProgressBar(leave=False)], enable_checkpointing=False)
        trainer.fit(training, datamodule=run.data)
        figures = _test_figures(training, splits.test)
        weights = run.folder / WEIGHTS.name
        save_tiny_clip(training.model, tokenizer, weights)
        run.add_output("weights", weights)
        if ship:
            save_tiny_clip(training.model, tokenizer, WEIGHTS)
            run.add_output("shipped weights", WEIGHTS)
        run.console.print(f"zero-shot top-1 {figures['test/zero_shot']:.1%}, mean AUROC {figures['test/auroc']:.3f}")
        run.summary(figures)
        return dict(figures)


def _test_figures(training: ContrastiveTraining, images: ImageSet) -> Mapping[str, float]:
    found = training.figures(images)
    by_concept = {f"auroc/{name}": value for name, value in found.auroc.items()}
    return {"test/zero_shot": found.accuracy, "test/auroc": found.mean_auroc, **by_concept}
