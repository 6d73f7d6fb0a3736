"""Classifiers of facial expressions: networks, preprocessing, training, and loading of weights."""
