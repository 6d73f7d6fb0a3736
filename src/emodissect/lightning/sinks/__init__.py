"""Logging back ends, one module each: W&B, TensorBoard, MLflow and CSV files.

A back end's library is imported only when one of its loggers is used.
"""

from emodissect.lightning.sinks.sink import Artifact, Picture, Sink, register_sink, sink_for, sinks_of

__all__ = ["Artifact", "Picture", "Sink", "register_sink", "sink_for", "sinks_of"]
