"""Neuron labels, and whether they are right."""
