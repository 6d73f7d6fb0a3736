"""Many edits of one layer without running the network again."""
