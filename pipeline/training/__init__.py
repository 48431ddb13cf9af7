"""Training loops, optimisers, checkpoints and process-group helpers."""
