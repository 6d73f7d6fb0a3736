"""Recording of activations: layer selection, pooling, top images, moments and storage."""

from emodissect.recording.activations import LayerActivations
from emodissect.recording.collector import ActivationCollector
from emodissect.recording.hooks import Recording, reached_layers, record
from emodissect.recording.layers import conv_and_linear, resolve_layers, unwrapped
from emodissect.recording.moments import Moments
from emodissect.recording.pooling import POOLS
from emodissect.recording.store import ActivationStore
from emodissect.recording.top_images import TopImages

__all__ = [
    "POOLS",
    "ActivationCollector",
    "ActivationStore",
    "LayerActivations",
    "Moments",
    "Recording",
    "TopImages",
    "conv_and_linear",
    "reached_layers",
    "record",
    "resolve_layers",
    "unwrapped",
]
