"""A callback that compares an edit of any LightningModule with the unedited module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from emodissect.data.batches import images_of
from emodissect.editing.edit import Edit, edited
from emodissect.lightning.dissect_neurons import part_of
from emodissect.lightning.tracking import edit_metrics, finite
from emodissect.models.network_output import LogitsOf, logits_of
from emodissect.models.predictions import Predictions
from emodissect.recording.gather import gathered
from emodissect.studies.comparison import Comparison, compare
from emodissect.studies.study import evaluated_row, predictions_of


class EvaluateEdit(Callback):
    """Compares an edit with the unedited module in any validation or test loop.

    Each batch is run without the edit and inside ``edited``, which restores the weights exactly. Metrics
    (``edit/<stage>/<metric>``: accuracy before and after, delta with its interval, flips both ways, the exact McNemar
    p-value) go through ``pl_module.log``: they are in ``trainer.callback_metrics``, and EarlyStopping can monitor them.

    Args:
        edit: one edit, or several that are applied together; layer paths are relative to the module.
        logits: ``logits(module, images)``, if ``module(images)`` does not return them.
        root: the submodule that layer paths are relative to; empty for the module itself.

    Attributes:
        comparison: of the last completed loop.
        before, after: its predictions.

    Example:
        >>> from emodissect.editing.rules import Scale
        >>> callback = EvaluateEdit(Edit("fc1", Scale(1.5)([True, False])))
        >>> callback.comparison is None
        True
    """

    def __init__(self, edit: Edit | Sequence[Edit], logits: LogitsOf | None = None, *, root: str = "") -> None:
        self.edits = [edit] if isinstance(edit, Edit) else list(edit)
        self.logits, self.root = logits, root
        self.comparison: Comparison | None = None
        self.before: Predictions | None = None
        self.after: Predictions | None = None
        self._rows: list[tuple[Tensor, ...]] = []
        self._seen = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for edit in self.edits:  # an edit that does not fit is reported before the first batch
            edit.changes(part_of(pl_module, self.root))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._seen = [], 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._seen = [], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluate(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._compare(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare(pl_module, "test")

    def _evaluate(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        images = images_of(batch)
        with trainer.precision_plugin.forward_context():
            before = logits_of(module, images, self.logits)
            with edited(part_of(module, self.root), *self.edits):
                after = logits_of(module, images, self.logits)
        row = evaluated_row(batch, before, after, self._seen, trainer.global_rank, trainer.world_size)
        self._seen += len(before)
        self._rows.append(row)

    def _compare(self, module: LightningModule, stage: str) -> None:
        rows = [row for part in gathered(self._rows) for row in part]
        self.before, self.after = predictions_of(rows)
        self.comparison = compare(self.before, self.after)
        # all ranks have the same rows, so there is nothing to synchronize
        module.log_dict(finite(edit_metrics(self.comparison, stage)), rank_zero_only=False, batch_size=1)
