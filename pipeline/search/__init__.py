"""Search for good fine-tuning settings with Ray Tune."""
