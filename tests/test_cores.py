import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pipeline.training.worker import use_threads
torch.set_num_threads(3)
use_threads(None, torch.device("cpu"), 1)
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_a_process_that_may_use_one_core_trains_with_one_thread():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    shown = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["1"], shown.stderr
