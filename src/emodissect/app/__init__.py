"""The Hydra application: command line, config, session, stages and the three verbs."""
