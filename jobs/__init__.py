"""Jobs: what gets run or submitted, each as `python -m jobs.NAME`."""
