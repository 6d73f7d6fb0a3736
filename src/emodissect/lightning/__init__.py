"""Lightning callbacks and loggers."""
