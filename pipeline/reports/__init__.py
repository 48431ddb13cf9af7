"""What models answer on a split, verdicts on them, and the report of a run."""
