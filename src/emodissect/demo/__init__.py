"""Drawn faces and the small CLIP that knows them; reached by `_target_` only."""
