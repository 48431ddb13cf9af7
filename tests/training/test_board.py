"""What workers tell the driver beside the training."""

import threading

import ray

from pipeline.progress import SILENT
from pipeline.training.board import progress_board


def test_machines_of_other_nodes_are_heard_of_once_a_sample(ray_cluster):
    heard: list[tuple[dict[str, float], str]] = []
    enough = threading.Event()

    def hear(metrics, name):
        heard.append((metrics, name))
        if len(heard) == 3:
            enough.set()

    @ray.remote(num_cpus=0)
    def tell(board, node_rank, percent):
        board.machine(node_rank, {"cpu_utilization_percentage": percent})

    with progress_board(SILENT, "train", 1, "frames", hear) as board:
        ray.get(tell.remote(board, 0, 10.0))  # of the driver's node, which is known
        board._node_id = "another node"
        ray.get([tell.remote(board, 1, 20.0), tell.remote(board, 2, 30.0)])
        for _ in range(600):
            if len(heard) == 2 or enough.wait(0.1):
                break
        ray.get(tell.remote(board, 1, 20.0))  # as busy as before, but another sample
        assert enough.wait(60)
    assert sorted(name for _, name in heard) == ["node_1", "node_1", "node_2"]
    assert {name: metrics["cpu_utilization_percentage"] for metrics, name in heard} == {"node_1": 20.0, "node_2": 30.0}
