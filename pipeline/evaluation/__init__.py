"""Metrics, probes, pictures and reports."""
