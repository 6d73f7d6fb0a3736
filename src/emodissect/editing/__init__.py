"""Selections, rules, and edits of weights that are restored to the last bit."""
