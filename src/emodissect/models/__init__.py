"""Classifiers of facial expressions: networks, what feeds them, how they are trained, how weights are read."""
