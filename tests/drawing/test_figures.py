"""Pictures: their sizes, what lies where, and what they refuse."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.drawing import figures
from pipeline.drawing.curves import CURVE_GROUPS, group_curves, moving_average, thin
from pipeline.drawing.figures import Case, pick_cases, skeleton_overlay
from pipeline.drawing.skeleton import JOINT_COLOURS
from pipeline.hands import BONES, FINGER_COLOURS, FINGER_JOINTS


def plain_frames(num: int, size: int = 32) -> torch.Tensor:
    """Frame i is of one grey, 10 * i."""
    return (torch.arange(num) * 10).to(torch.uint8)[:, None, None, None].expand(num, 3, size, size).contiguous()


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGBA")


def hand(size: float) -> np.ndarray:
    """A fan of five fingers in a picture of this size."""
    joints = np.zeros((21, 2))
    joints[0] = (0.5 * size, 0.9 * size)
    for finger, (_, numbers) in enumerate(FINGER_JOINTS.items()):
        for place, joint in enumerate(numbers):
            reach = 0.3 + 0.16 * place
            joints[joint] = joints[0] + reach * size * np.array([(finger - 2) * 0.22, -0.9])
    return joints


def test_view_pairs_stand_side_by_side() -> None:
    first, second = plain_frames(5), plain_frames(5) + 3
    image = opened(figures.view_pairs(first, second, max_pairs=4, pairs_per_row=2))
    pair, gap = 32 + 1 + 32, 9
    assert image.size == (2 * pair + gap, 2 * 32 + gap)
    assert image.getpixel((16, 16)) == (0, 0, 0, 255)
    assert image.getpixel((33 + 16, 16)) == (3, 3, 3, 255)
    assert image.getpixel((pair + gap + 16, 32 + gap + 16)) == (30, 30, 30, 255)
    assert np.asarray(image)[16, pair + 4, 3] == 0  # the ground is transparent


def test_view_pairs_need_as_many_of_both() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        figures.view_pairs(plain_frames(3), plain_frames(2))


@pytest.mark.parametrize("frames", [torch.zeros(2, 3, 8, 8), np.zeros((2, 8, 8, 3), np.uint8)])
def test_frames_of_another_kind_are_refused(frames: torch.Tensor | np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8 of shape"):
        figures.contact_sheet(frames)


def test_neighbours_follow_their_query() -> None:
    queries, results = plain_frames(2).numpy(), torch.stack([plain_frames(3) + 100, plain_frames(3) + 50])
    image = opened(figures.neighbours(queries, results, tile=32))
    assert image.getpixel((16, 16)) == (0, 0, 0, 255)
    assert image.getpixel((image.width - 16, 16)) == (120, 120, 120, 255)
    assert image.getpixel((16, image.height - 16)) == (10, 10, 10, 255)
    assert image.getpixel((image.width - 16, image.height - 16)) == (70, 70, 70, 255)


def test_contact_sheet_takes_the_first_frames() -> None:
    image = opened(figures.contact_sheet(plain_frames(9), columns=3, tile=16, max_frames=6))
    assert image.size == (3 * 16 + 2 * 2, 2 * 16 + 2)
    assert image.getpixel((image.width - 8, image.height - 8)) == (50, 50, 50, 255)


def test_no_frames_make_an_empty_picture() -> None:
    assert opened(figures.contact_sheet(plain_frames(0))).size == (1, 1)


def test_skeletons_are_drawn_where_the_joints_are_in_the_fingers_colours() -> None:
    joints = hand(64)
    drawn = skeleton_overlay(plain_frames(1, 64)[0], torch.from_numpy(joints), size=256)
    assert drawn.shape == (256, 256, 3)
    for finger, numbers in FINGER_JOINTS.items():
        middle = (joints[numbers[1]] + joints[numbers[2]]) / 2 * 4  # half-way along a bone, in the enlarged picture
        x, y = (int(v) for v in middle)
        assert np.abs(drawn[y, x].astype(int) - FINGER_COLOURS[finger]).max() < 40, finger
    assert (drawn[5, 5] == 0).all()


def test_the_label_is_white_and_shows_beside_the_prediction() -> None:
    joints = hand(64)
    drawn = skeleton_overlay(plain_frames(1, 64)[0], joints, joints + np.array([12, 0]), size=256)
    x, y = ((joints[10] + joints[11]) / 2 + np.array([12, 0])) * 4
    assert (drawn[int(y), int(x)] > 200).all()


def test_joints_that_are_not_numbers_leave_the_frame_as_it_is() -> None:
    drawn = skeleton_overlay(plain_frames(2, 64)[1], np.full((21, 2), np.nan), size=64)
    assert (drawn == 10).all()


def test_overlays_add_the_side_view_where_there_is_depth() -> None:
    joints = hand(64)
    deep = np.concatenate([joints, joints[:, :1]], axis=1)
    flat = opened(figures.overlays([Case(plain_frames(1, 64)[0], joints, label="7.2 mm")] * 3, columns=2, tile=96))
    assert flat.size == (2 * 96 + 6, 2 * 96 + 6)
    case = Case(plain_frames(1, 64)[0], joints, joints, deep, deep + 1, "12.0 mm")
    both = opened(figures.overlays([case], tile=96))
    assert both.size == (96, 192)
    # The label stands in the upper left corner.
    assert np.asarray(both)[8:24, 8:60, :3].max() > 200


def test_joint_colours_follow_the_fingers() -> None:
    assert len(JOINT_COLOURS) == 21
    assert {JOINT_COLOURS[child] for _, child in BONES} == set(FINGER_COLOURS.values())


def test_cases_are_good_median_and_worst() -> None:
    errors = np.arange(100.0)[::-1]
    errors[50] = np.nan
    groups = pick_cases(errors, num=4)
    assert [round(errors[i]) for i in groups.good] == [3, 4, 5, 6]
    assert all(45 <= errors[i] <= 55 for i in groups.median)
    assert [errors[i] for i in groups.worst] == [96, 97, 98, 99]
    assert 50 not in groups.good + groups.median + groups.worst


@pytest.mark.parametrize("num_frames", range(12))
def test_no_frame_is_shown_twice(num_frames: int) -> None:
    groups = pick_cases(np.arange(float(num_frames)), num=4)
    shown = groups.good + groups.median + groups.worst
    assert len(shown) == len(set(shown))
    assert len(shown) == (num_frames if num_frames < 3 else 3 * min(4, num_frames // 3))


def history(num: int = 200) -> dict[str, list[tuple[float, float]]]:
    return {
        "loss": [(i, 5 - i / num) for i in range(num)],
        "positive_similarity": [(i, 0.5) for i in range(num)],
        "negative_similarity": [(i, float("nan") if i == 3 else 0.1) for i in range(num)],
        "data_wait_fraction": [(0, 0.02)],
        "epoch": [(i, i / 10) for i in range(num)],
        "something_else": [(0, 1.0)],
        "empty": [],
    }


def test_curves_are_grouped_scaled_and_none_is_lost() -> None:
    charts = {chart.title: chart for chart in group_curves(history(), CURVE_GROUPS)}
    assert list(charts) == ["Loss", "Cosine similarity", "Waiting for data", "something_else"]
    assert list(charts["Cosine similarity"].series) == ["two views of a frame", "different frames"]
    assert len(charts["Cosine similarity"].series["different frames"]) == 199
    assert charts["Waiting for data"].series["waiting"] == [(0, 2.0)]


def test_a_metric_in_a_folder_is_found() -> None:
    assert [c.title for c in group_curves({"train/loss": [(0, 1.0)]})] == ["Loss"]
    assert [c.title for c in group_curves({"pair_loss": [(0, 1.0)]})] == ["pair_loss"]


def test_moving_average_keeps_length_and_straight_lines() -> None:
    line = [(float(i), 2.0 * i) for i in range(100)]
    smooth = moving_average(line)
    assert len(smooth) == 100
    assert smooth[0] == line[0]
    np.testing.assert_allclose(smooth[:98], line[:98])
    assert moving_average(line[:10]) is not smooth
    assert moving_average(line[:10]) == line[:10]


def test_thinning_keeps_spikes_and_ends() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321] = (4321.0, 9.0)
    thinned = thin(points, 300)
    assert len(thinned) <= 302
    assert (4321.0, 9.0) in thinned
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


@pytest.mark.parametrize(("num_models", "num_frames", "blocks_in_a_row"), [(2, 4, 2), (3, 4, 2), (1, 4, 4), (7, 2, 1)])
def test_the_answers_of_models_stand_side_by_side(num_models: int, num_frames: int, blocks_in_a_row: int) -> None:
    """A block for each frame, one picture a model in it, in rows that are as long as each other."""
    frames = plain_frames(num_frames)
    cases = [[Case(frame, np.full((21, 2), np.nan), label="") for _ in range(num_models)] for frame in frames]
    image = opened(figures.side_by_side(cases, tiles_per_row=6, tile=40))
    block, rows = num_models * 43 - 3, num_frames // blocks_in_a_row
    assert image.size == (blocks_in_a_row * (block + 21) - 21, rows * (40 + 21) - 21)
    for number in range(num_frames):
        row, column = divmod(number, blocks_in_a_row)
        for place in range(num_models):
            at = (column * (block + 21) + place * 43 + 20, row * 61 + 20)
            assert image.getpixel(at) == (10 * number, 10 * number, 10 * number, 255)
