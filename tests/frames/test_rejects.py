import json

import pytest

from pipeline.frames.rejects import CLIP_REASONS, FRAME_REASONS, MAX_EXAMPLES, Rejects


def test_counts_and_examples():
    rejects = Rejects()
    for i in range(30):
        rejects.add("no_hand", f"clip/{i:06d}")
    rejects.add("broken_video_tail", "clip", count=5)
    rejects.add("unreadable_video", "other")
    assert rejects.counts == {"no_hand": 30, "broken_video_tail": 5, "unreadable_video": 1}
    assert len(rejects.examples["no_hand"]) == MAX_EXAMPLES
    assert (rejects.num_clips, rejects.num_frames) == (1, 35)
    assert rejects.text().startswith("no_hand 30 (e.g. clip/000000), broken_video_tail 5")


def test_merging_and_json():
    one, two = Rejects(), Rejects()
    for i in range(15):
        one.add("no_hand", f"a/{i}")
        two.add("no_hand", f"b/{i}")
    two.add("bad_box", "c")
    one.merge(Rejects.from_json(json.loads(json.dumps(two.to_json()))))
    assert one.counts == {"no_hand": 30, "bad_box": 1}
    assert one.examples["no_hand"] == [f"a/{i}" for i in range(15)] + [f"b/{i}" for i in range(5)]
    assert len(two.examples["no_hand"]) == 15


def test_reasons_are_known_and_distinct():
    assert not CLIP_REASONS.keys() & FRAME_REASONS.keys()
    with pytest.raises(KeyError):
        Rejects().add("no_reason", "x")
