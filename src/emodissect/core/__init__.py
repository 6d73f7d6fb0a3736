"""What every other room uses: errors, cache, atomic files, distributed ranks, progress, number format, statistics."""
