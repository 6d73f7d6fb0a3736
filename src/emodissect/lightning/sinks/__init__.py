"""Logging back ends, one file each: what a run sends to W&B, TensorBoard, MLflow or a CSV file.

A back end's own library is imported when one of its loggers is used, not before.
"""

from emodissect.lightning.sinks.sink import Artifact, Picture, Sink, register_sink, sink_for, sinks_of

__all__ = ["Artifact", "Picture", "Sink", "register_sink", "sink_for", "sinks_of"]
