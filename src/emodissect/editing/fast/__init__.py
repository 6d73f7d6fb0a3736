"""Evaluates many edits of one layer without re-running the whole network."""
