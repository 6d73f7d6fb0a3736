"""The classifier: a network with its preprocessing, training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms.v2 import MixUp

from emodissect.core.errors import UserError, reason
from emodissect.core.evaluation_mode import evaluating
from emodissect.data.images import Batch
from emodissect.models.augmentation import Augmentation
from emodissect.models.class_order import output_columns
from emodissect.models.network_output import described, giving, parts_of
from emodissect.models.predictions import EpochPredictions, Predictions
from emodissect.models.preprocessing import Preprocess
from emodissect.models.schedules import schedule

log = logging.getLogger(__name__)

CROPS = 10
_HALVES = (torch.bfloat16, torch.float16)
_NAN_CHECK_EVERY = 50  # steps on an accelerator, where reading the loss synchronizes; on a CPU every step is checked


class Classifier(LightningModule):
    """uint8 images in, logits in the data's class order out.

    Logged: `train/loss`, `train/acc`, and for val and test `acc`, `acc_top2`, `f1`, `nll`, `ece`, `recall/<class>`.
    Its state dict only has `network.*`; its hyperparameters are plain values, so that its checkpoints load with
    `weights_only=True`.

    Args:
        network: any module from float images to logits; layer names are paths in it.
        preprocess: converts uint8 images to the network's input; `views=ten_crop` evaluates with ten crops.
        augment: augmentation of training images; None for none.
        optimizer: creates an optimizer, given the parameters; None: SGD with Nesterov momentum, learning rate 0.01.
        scheduler: creates a schedule, given the optimizer; None: a constant rate (see `schedules.schedule`).
        class_order: the network's classes in the order of its outputs; None if that is the data's order.
        label_smoothing: share of each target that is spread over all classes.
        mixup: alpha of mixup (Zhang et al. 2018): each training image and its target are blended with another of the
            batch, with a weight drawn from Beta(alpha, alpha); 0 for none.
        ten_crop: train on ten crops of each image instead of one view.
        channels_last: use the channels-last memory format (faster on CPUs and tensor cores) if :meth:`prepare` finds
            that the network gives the same output.
        compile: train and evaluate with torch.compile (takes a minute at the start); never used for dissection.
        monitor: the metric that a plateau schedule monitors.
        model_config: the network's config as plain values; saved in checkpoints.
        output: the part of the network's output that has the logits, e.g. `logits` or `0`; None for the whole output.
            The network then returns only this part.

    Attributes:
        knows_classes: whether the network's outputs are logits of the data's classes. If set to False (a published
            network used as it is), activations can be recorded, and predictions have no logits (shape (image, 0)).
    """

    columns: Int64[Tensor, " class"]

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        class_names: Sequence[str],
        *,
        augment: Augmentation | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        class_order: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        ten_crop: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        monitor: str = "val/acc",
        model_config: Mapping[str, Any] | None = None,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing={label_smoothing}: a share in [0, 1) is accepted.")
        if not 0 <= mixup < float("inf"):
            raise UserError(f"mixup={mixup}: alpha must be a number >= 0, such as 0.2; 0 blends no images.")
        self.save_hyperparameters(
            {
                "class_names": [str(name) for name in class_names],
                "class_order": None if class_order is None else [str(name) for name in class_order],
                "label_smoothing": float(label_smoothing),
                "mixup": float(mixup),
                "ten_crop": bool(ten_crop),
                "model": _plain(model_config or {}),
            },
            logger=False,
        )
        self.class_names = tuple(str(name) for name in class_names)
        self.network = network if output is None else giving(network, output)
        self.preprocess = preprocess
        self.augment = augment if augment is not None else Augmentation()
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.label_smoothing, self.ten_crop, self.monitor = label_smoothing, ten_crop, monitor
        self.mixup = MixUp(alpha=mixup, num_classes=len(self.class_names)) if mixup else None
        self.channels_last, self.compiled = False, compile
        self._wants_channels_last = channels_last
        self.register_buffer("columns", output_columns(self.class_names, class_order), persistent=False)
        self._as_is = class_order is None or self.columns.tolist() == list(range(len(class_order)))
        self.knows_classes = True
        self._soft: tuple[Tensor, Tensor] | None = None
        self._fast: list[Callable[[Tensor], Tensor]] = []  # in a list, so that it is not registered as a submodule
        self.outputs = nn.ModuleDict({"val": EpochPredictions(), "test": EpochPredictions()})
        self.results: dict[str, Predictions] = {}

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the metrics that a fit logs, which callbacks and schedules can monitor."""
        recalls = [f"recall/{name}" for name in self.class_names]
        validated = [f"val/{name}" for name in ("acc", "acc_top2", "f1", "nll", "ece", *recalls)]
        return ("train/loss", "train/acc", *validated)

    # -- from images to logits ---------------------------------------------------------------------------------------

    def forward(self, images: UInt8[Tensor, "image c h w"]) -> Float[Tensor, "image class"]:
        """Logits in the data's class order; the mean over ten crops with `preprocess.views="ten_crop"`."""
        return self.finished(self._run(self.inputs(images)))

    def inputs(self, images: UInt8[Tensor, "image c h w"]) -> Float[Tensor, "view c h w"]:
        """The network's input: one view per image, or ten, ordered by crop."""
        if self.preprocess.views == "single":
            return self._laid_out(self.preprocess(images))
        return self._laid_out(self.preprocess.crops(images).flatten(0, 1))

    def finished(self, output: Any) -> Float[Tensor, "image class"]:
        """The network's output as logits in the data's class order, the mean over an image's views."""
        logits = self._in_data_order(output)
        if self.preprocess.views == "single":
            return logits
        return logits.unflatten(0, (CROPS, -1)).mean(dim=0)

    def crop_logits(self, images: UInt8[Tensor, "image c h w"]) -> Float[Tensor, "image class"]:
        """Logits averaged over ten crops, regardless of `preprocess.views`."""
        return self._logits(self.preprocess.crops(images).flatten(0, 1)).unflatten(0, (CROPS, -1)).mean(dim=0)

    def single_view(self, images: UInt8[Tensor, "image c h w"]) -> Float[Tensor, "image class"]:
        """Logits of one view per image; used for dissection, which needs one row of activations per image."""
        return self._logits(self.preprocess(images))

    def _logits(self, inputs: Float[Tensor, "view c h w"]) -> Float[Tensor, "view class"]:
        return self._in_data_order(self._run(self._laid_out(inputs)))

    def _laid_out(self, inputs: Float[Tensor, "view c h w"]) -> Float[Tensor, "view c h w"]:
        parameter = next(self.network.parameters(), None)
        if parameter is not None and parameter.dtype in _HALVES:  # a network in true half precision
            inputs = inputs.to(parameter.dtype)
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _run(self, inputs: Float[Tensor, "view c h w"]) -> Any:
        return self._fast[0](inputs) if self._fast else self.network(inputs)

    def _in_data_order(self, logits: Any) -> Float[Tensor, "view class"]:
        if check_output := self.check_output(logits):
            raise UserError(check_output)
        return logits if self._as_is else logits[:, self.columns]

    def prepare(self, images: UInt8[Tensor, "image c h w"]) -> None:
        """Run a few images once: lazy layers get their shapes, and the memory format is chosen.

        Channels-last is used if the network's output stays the same: a network that flattens by ``x.view(n, -1)``
        fails with it, and one that depends on strides gives another output.

        Raises:
            UserError: as :meth:`dry_run`.
        """
        with evaluating(self.network):
            before = self.dry_run(images)
            inputs = self.inputs(images)
            if not self._wants_channels_last or self.channels_last or inputs.ndim != 4:
                return
            self.network.to(memory_format=torch.channels_last)
            self.channels_last = True
            try:
                with torch.inference_mode():
                    same = _same(before, self._run(self.inputs(images)))
            except Exception:  # a user's network may raise anything
                same = False
        if not same:
            self.network.to(memory_format=torch.contiguous_format)
            self.channels_last = False
            log.info("%s is run without channels_last, which would change its output.", type(self.network).__name__)

    def dry_run(self, images: UInt8[Tensor, "image c h w"]) -> Any:
        """The network's output for a few images, so that incompatible inputs are reported before any work.

        Raises:
            UserError: the network fails on these images; names their shape and the keys that change it.
        """
        inputs = self.inputs(images)
        try:
            with torch.no_grad():  # parameters that lazy layers create in inference mode could not be trained
                return self._run(inputs)
        except UserError:
            raise
        except Exception as error:  # a user's network may raise anything
            channels, height, width = inputs.shape[1:]
            said = reason(error)
            if isinstance(error, TypeError) and "required positional argument" in said:
                raise UserError(
                    f"{type(self.network).__name__} needs more than images: {said}. Give its further arguments by "
                    "name: 'model.forward={name: value}'."
                ) from error
            raise UserError(
                f"{type(self.network).__name__} cannot take the images, {channels}x{height}x{width} (channel x height "
                f"x width): {said}. Set model.preprocess.size and model.channels (or model.preprocess.channels) to "
                f"what it takes, or make it for this size: many of timm's take 'model.arguments={{img_size:{height}}}'."
            ) from error

    def check_output(self, output: Any) -> str | None:
        """Why the output is not one row of logits per image over the known classes; None if it is."""
        order = self.hparams["class_order"]
        known = len(self.class_names) if order is None else len(order)
        if not isinstance(output, Tensor) or output.ndim != 2:
            given = described(output, known)
            return f"{type(self.network).__name__} gave {given}, not logits of shape (image, class)."
        if output.shape[1] != known:
            return (
                f"{type(self.network).__name__} gives {output.shape[1]} logits for {known} classes "
                f"({', '.join(order or self.class_names)}). Set model.num_classes={known}, or name the network's "
                "outputs in model.class_order."
            )
        return None

    # -- training ----------------------------------------------------------------------------------------------------

    def set_soft_labels(self, ids: Int64[Tensor, " image"], distributions: Float[Tensor, "image class"] | None) -> None:
        """Train these images on a distribution over the classes instead of one class; None resets this.

        Images whose id is not among `ids` keep their label. Rows are normalized to sum to one.
        """
        if distributions is None:
            self._soft = None
            return
        if distributions.shape != (len(ids), len(self.class_names)) or bool((distributions < 0).any()):
            raise UserError(
                f"soft labels of shape {tuple(distributions.shape)} for {len(ids)} images and "
                f"{len(self.class_names)} classes: one non-negative row per image is needed."
            )
        total = distributions.sum(dim=1, keepdim=True)
        if bool((total <= 0).any()):
            raise UserError(f"{int((total <= 0).sum())} soft labels are all zero: give those images no soft label.")
        order = torch.argsort(ids)
        self._soft = ids[order], (distributions / total)[order].float()

    def _targets(self, batch: Batch) -> Tensor:
        if self._soft is None:
            return batch.labels
        ids, rows = (part.to(batch.ids.device) for part in self._soft)
        self._soft = ids, rows
        place = torch.searchsorted(ids, batch.ids).clamp(max=len(ids) - 1)
        known = (ids[place] == batch.ids)[:, None]
        return torch.where(known, rows[place], F.one_hot(batch.labels, len(self.class_names)).float())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the augmented batch."""
        batch = Batch(*batch)
        images = self.augment(batch.images)
        targets = self._targets(batch)
        if self.ten_crop:
            crops = self.preprocess.crops(images)
            inputs, views = crops.flatten(0, 1), len(crops)
            targets = targets.repeat(views, *[1] * (targets.ndim - 1))
        else:
            inputs, views = self.preprocess(images), 1
        inputs = self.augment.after_crop(inputs)
        if self.mixup is not None:
            inputs, targets = self.mixup(inputs, targets)
        logits = self._logits(inputs).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self._require_finite(loss, batch_idx)
        predicted = logits.detach().unflatten(0, (views, -1)).mean(dim=0).argmax(dim=1)
        images_seen = len(batch.labels)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=images_seen)
        accuracy = (predicted == batch.labels).float().mean()
        self.log("train/acc", accuracy, on_step=False, on_epoch=True, batch_size=images_seen)
        return loss

    def _require_finite(self, loss: Tensor, batch_idx: int) -> None:
        if loss.device.type != "cpu" and batch_idx % _NAN_CHECK_EVERY:
            return
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}): training "
                "diverged. Try a smaller optimizer.lr, trainer.gradient_clip_val=1, or trainer.precision=32."
            )

    def configure_optimizers(self) -> Any:
        """The optimizer, and Lightning's config of the schedule."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if self.make_optimizer is None:
            optimizer: Optimizer = SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
        else:
            try:
                optimizer = self.make_optimizer(parameters)
            except (TypeError, ValueError) as error:
                raise UserError(f"The optimizer cannot be created as configured (optimizer.*): {error}") from error
        if self.make_scheduler is None:
            return optimizer
        try:
            scheduler = schedule(self.make_scheduler, optimizer, self.trainer, self.monitor)
        except (TypeError, ValueError) as error:
            raise UserError(f"The schedule cannot be created as configured (scheduler.*): {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def setup(self, stage: str) -> None:
        """Compile the network if `compile` is set; the plain network stays available."""
        if self.compiled and not self._fast:
            self._fast.append(torch.compile(self.network))

    def teardown(self, stage: str) -> None:
        """Drop the compiled network."""
        self._fast.clear()

    # -- evaluation --------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Predictions:
        """Ids, labels and logits of a batch; logits of shape (image, 0) if `knows_classes` is False."""
        batch = Batch(*batch)
        if not self.knows_classes:
            self._run(self.inputs(batch.images))  # for recording hooks
            return Predictions(batch.ids, batch.labels, torch.empty(len(batch.ids), 0))
        return Predictions(batch.ids, batch.labels, self(batch.images).float())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the outputs until the end of the epoch."""
        self._keep("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the outputs until the end of the epoch."""
        self._keep("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log val/*."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log test/*."""
        self._score("test")

    def _keep(self, split: str, batch: Batch) -> None:
        kept = self.outputs[split]
        assert isinstance(kept, EpochPredictions)
        kept.update(self.predict_step(batch))

    def _score(self, split: str) -> None:
        kept = self.outputs[split]
        assert isinstance(kept, EpochPredictions)
        ids, labels, logits = kept.compute()
        kept.reset()
        if ids.numel() == 0:
            return
        # torchmetrics squeezes a tensor with one value to a scalar, and a split may have one image
        found = Predictions(ids.reshape(-1), labels.reshape(-1), logits.reshape(ids.numel(), -1))
        values = found.logged(self.class_names)
        self.results[split] = Predictions(*(part.cpu() for part in found))
        # All ranks have the same gathered predictions, so there is nothing to synchronize.
        accuracy = values.pop("acc")
        self.log_dict({f"{split}/{name}": value for name, value in values.items()}, rank_zero_only=False)
        self.log(f"{split}/acc", accuracy, prog_bar=True)


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs, tensors or nested, agree up to rounding."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return False
        scale = float(one.abs().max()) if one.numel() else 0.0
        return bool(torch.allclose(one, other, rtol=0, atol=1e-3 * scale, equal_nan=True))
    first, second = parts_of(one), parts_of(other)
    return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)


def _plain(value: Any) -> Any:
    """The value as lists, dicts and scalars only, so that it can be loaded with `weights_only=True`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise TypeError(f"a checkpoint keeps plain values only, not {type(value).__name__}")
