"""How many cores a process may use."""


def usable_cores() -> int:
    """Cores of this process: those that its affinity and its container's CPU limit leave it, rounded up. os.cpu_count()
    has all of the machine's, and as many threads on a share of them hold each other up."""
    import joblib

    cores: int = joblib.cpu_count()
    return cores
