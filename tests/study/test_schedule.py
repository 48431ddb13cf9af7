from unittest.mock import Mock, call

from pipeline.study.schedule import _told


def test_small_steps_do_not_flood_the_board_which_hears_the_end():
    board = Mock()

    def run(notice):
        for frames in range(16, 16_016, 16):
            notice(frames)
        return {"frames": 16_000}

    assert _told(board, "cell", run) == {"frames": 16_000}
    posts = list(board.post.mock_calls)
    assert posts[0] == call("cell", 16)
    assert posts[-1] == call("cell", 16_000)
    assert len(posts) < 20
    assert _told(board, "cell", lambda notice: {"stopped": True}) == {"stopped": True}
    assert board.post.mock_calls == posts
