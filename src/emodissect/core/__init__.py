"""What everything stands on: errors, cache, atomic files, distributed ranks, progress, number format, statistics."""
