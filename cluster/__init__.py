"""Where jobs run: a local cluster for rehearsal, and the files for Kubernetes and AWS."""
