"""Drawn faces, and a small CLIP trained on them; used through `_target_` only."""
