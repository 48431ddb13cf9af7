"""Memory that a process keeps, seen in the pages that the system had to give it."""

import subprocess
import sys
import textwrap

import pytest
import torch

from pipeline.training.allocator import keep_freed_memory

_COUNT = """
    import resource, sys, threading, torch
    from pipeline.models.encoder import EncoderSettings, build_encoder
    from pipeline.training.allocator import keep_freed_memory

    torch.set_num_threads(1)
    encoder = build_encoder(EncoderSettings(width=32)).train()
    images = torch.rand(64, 3, 64, 64)

    def step():
        encoder.zero_grad(set_to_none=True)
        encoder(images).square().mean().backward()

    def pages():
        for _ in range(4):
            step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if sys.argv[1] == "keep":
        assert keep_freed_memory(torch.device("cpu"))
    counted = [pages()]
    thread = threading.Thread(target=lambda: counted.append(pages()))  # as Ray Train runs a training loop
    thread.start()
    thread.join()
    print(*counted)
"""


def _pages(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_COUNT), how], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return sum(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_steps_of_a_network_ask_the_system_for_no_more_memory():
    usual, kept = _pages("leave"), _pages("keep")  # seen: 40,000 to 120,000, and 1,000 to 6,000
    assert kept < usual / 3


def test_beside_a_gpu_nothing_changes():
    assert not keep_freed_memory(torch.device("cuda", 0))
