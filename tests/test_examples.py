"""The examples run as they are."""

import math
import runpy
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.frames.clips import CAMERA, draw, joints_at, project
from tests.tiny_sets import write_tiny_set

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_a_hand_in_a_photo_is_drawn(tmp_path, capsys):
    image = draw([project(joints_at(0), CAMERA)])
    Image.fromarray(image).save(tmp_path / "photo.png")
    example("hand_in_a_photo")(str(tmp_path / "photo.png"), [40, 20, 120, 90], "left", str(tmp_path / "out.png"))
    assert len(capsys.readouterr().out.splitlines()) == 21
    assert (np.asarray(Image.open(tmp_path / "out.png")) != image).any()


def test_one_step_of_pretraining(tmp_path, capsys):
    write_tiny_set(str(tmp_path), splits={"train": 32}, image_size=64)
    torch.manual_seed(0)
    loss = example("one_step_of_pretraining")(str(tmp_path))
    assert 0 < loss < math.log(63)  # two views of a frame are nearer to each other than to the others from the start
    assert capsys.readouterr().out.startswith("32 hands")
