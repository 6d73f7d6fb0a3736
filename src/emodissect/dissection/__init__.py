"""Labels neurons with concepts, and measures whether the labels are right."""
