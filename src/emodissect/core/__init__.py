"""Basics used by all other packages: errors, cache, files, distributed runs, progress, number format, statistics."""
