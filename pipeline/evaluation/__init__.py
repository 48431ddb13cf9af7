"""Errors against ground truth, yardsticks beside them, and probes of frozen features."""
