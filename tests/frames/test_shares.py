from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.frames.shares import parts_of, rows_of_workers


@settings(max_examples=200, deadline=None)
@given(world_size=st.integers(1, 12), num_shares=st.integers(1, 12), share_size=st.integers(1, 20))
def test_parts_are_the_batch_in_order_of_rank(world_size, num_shares, share_size):
    parts = [parts_of(rank, world_size, num_shares, share_size) for rank in range(world_size)]
    rows = [(part.share, row) for of_worker in parts for part in of_worker for row in range(part.start, part.stop)]
    assert rows == [(share, row) for share in range(num_shares) for row in range(share_size)]
    counts = rows_of_workers(world_size, num_shares, share_size)
    assert [sum(part.num_rows for part in of_worker) for of_worker in parts] == list(counts)
    if world_size <= num_shares:
        assert max(counts) - min(counts) in (0, share_size)
        assert all(part.num_rows == share_size for of_worker in parts for part in of_worker)
    else:
        assert all(len(of_worker) == 1 for of_worker in parts)
