from unittest.mock import Mock, call

from pipeline.study.schedule import _with_progress


def test_small_steps_do_not_flood_the_board_which_hears_the_end():
    board = Mock()

    def run(notice):
        for frames in range(16, 16_016, 16):
            notice(frames)
        return {"frames": 16_000}

    assert _with_progress(board, "cell", run) == {"frames": 16_000}
    posts = list(board.post.mock_calls)
    assert posts[0] == call("cell", 16)
    assert posts[-1] == call("cell", 16_000)
    assert len(posts) < 20
    assert _with_progress(board, "cell", lambda notice: {"stopped": True}) == {"stopped": True}
    assert board.post.mock_calls == posts
