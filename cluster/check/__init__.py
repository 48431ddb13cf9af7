"""What can be known about the files for a cluster without having one: see `python -m cluster.check --help`."""
