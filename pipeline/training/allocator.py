"""Memory that a training frees stays its own, for the next step.

glibc gives the memory of large tensors back to the system and asks for it anew in every step, and the system clears each page
(docs/speed.md has what that costs).
"""

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory(device: torch.device) -> bool:
    """For the rest of this process, which then holds as much memory as it ever needed at once. False where nothing is changed: beside a
    GPU, whose memory torch keeps anyway, and where the C library is not glibc."""
    if device.type != "cpu":
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return False
    settings = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_THRESHOLD: 2**30, _M_TOP_PAD: 2**26}
    return all(libc.mallopt(name, value) for name, value in settings.items())
