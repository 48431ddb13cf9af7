import multiprocessing
import threading

import pytest

from pipeline import tracking_queue
from pipeline.tracking_queue import Courier, Queue, Refused


class Store:
    """Instead of MLflow."""

    def __init__(self):
        self.got, self.requests = [], []
        self.is_away = False
        self.refuses = lambda record: False

    def __call__(self, records):
        if self.is_away:
            raise OSError("no answer")
        for record in records:
            if self.refuses(record):
                raise Refused(f"bad step {record['step']}")
        self.requests.append(len(records))
        self.got += [record["step"] for record in records]


def metrics(step, run="a", num_values=1):
    return {
        "do": "metrics",
        "run": ["x", run],
        "time": step,
        "step": step,
        "values": {str(i): 1.0 for i in range(num_values)},
    }


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "run" / "tracking")


def test_in_order_each_once_and_the_disk_is_given_back(queue, store):
    courier = Courier(queue, store, pytest.fail)
    queue.put(*(metrics(step) for step in range(5)))
    queue.put({**metrics(5), "do": "text"}, metrics(6), metrics(7, run="b"), metrics(8, run="b"))
    assert queue.num_waiting() == 9
    assert courier.deliver() is None
    assert store.got == list(range(9))
    assert store.requests == [5, 1, 1, 2]
    assert not queue.has_left()
    assert (queue.folder / "queue.jsonl").stat().st_size == 0
    assert courier.deliver() is None
    queue.put(metrics(9))
    assert courier.deliver() is None
    assert store.got == list(range(10))
    assert courier.num_delivered == 10


def test_a_request_is_not_larger_than_mlflow_takes(queue, store):
    queue.put(*(metrics(step, num_values=400) for step in range(5)))
    Courier(queue, store, pytest.fail).deliver()
    assert store.requests == [2, 2, 1]


def test_a_server_too_slow_for_a_large_request_gets_smaller_ones(queue, store):
    queue.put(*(metrics(step, num_values=10) for step in range(200)))

    def slow(records):
        if len(records) > 7:
            raise TimeoutError("read timed out")
        store(records)

    courier = Courier(queue, slow, pytest.fail)
    attempts = 1
    while courier.deliver() is not None:
        attempts += 1
    assert attempts <= 4
    assert store.got == list(range(200))


def test_more_than_is_read_at_once(queue, store, monkeypatch):
    monkeypatch.setattr(tracking_queue, "_READ_BYTES", 300)
    queue.put(*(metrics(step) for step in range(50)))
    Courier(queue, store, pytest.fail).deliver()
    assert store.got == list(range(50))


def test_away_and_back(queue, store):
    courier = Courier(queue, store, pytest.fail)
    queue.put(metrics(0))
    assert courier.deliver() is None
    store.is_away = True
    queue.put(metrics(1), metrics(2))
    assert str(courier.deliver()) == "no answer"
    queue.put(metrics(3))
    assert str(courier.deliver()) == "no answer"
    store.is_away = False
    assert courier.deliver() is None
    assert store.got == [0, 1, 2, 3]


def test_a_process_that_is_killed_in_between_leaves_the_rest(queue, store):
    """Another process goes on from what is on disk, behind what was delivered."""

    def send(records):
        if records[0]["step"] == 2:
            raise SystemExit  # nothing after it is done
        store(records)

    queue.put(*({**metrics(step), "do": "text"} for step in range(4)))
    with pytest.raises(SystemExit):
        Courier(queue, send, pytest.fail).deliver()
    again = Queue(queue.folder)
    assert again.num_waiting() == 2
    Courier(again, store, pytest.fail).deliver()
    assert store.got == [0, 1, 2, 3]


def test_a_record_that_was_cut_off_is_set_aside_and_named(queue, store):
    queue.put(metrics(0))
    with open(queue.folder / "queue.jsonl", "ab") as file:
        file.write(b'{"do": "metr')
    said: list[str] = []
    courier = Courier(queue, store, said.append)
    courier.deliver()  # half a line may become a whole one
    assert store.got == [0]
    queue.put(metrics(1))
    courier.deliver()
    assert store.got == [0, 1]
    assert [record["damaged"] for record in queue.refused()] == ['{"do": "metr\n']
    assert len(said) == 1
    assert said[0].startswith("half a record")


def test_what_is_refused_holds_up_nothing_and_is_tried_again(queue, store):
    said: list[str] = []
    courier = Courier(queue, store, said.append)
    store.refuses = lambda record: record["step"] == 2
    queue.put(*(metrics(step) for step in range(4)))
    assert courier.deliver() is None
    assert store.got == [0, 1, 3]
    assert [(record["step"], record["refused"]) for record in queue.refused()] == [(2, "bad step 2")]
    assert said == [f"bad step 2; what it refuses is kept in {queue.folder}/refused.jsonl"]
    assert queue.has_left()
    store.refuses = lambda record: False
    store.is_away = True
    assert str(courier.deliver(again=True)) == "no answer"
    assert len(queue.refused()) == 1
    store.is_away = False
    assert courier.deliver(again=True) is None
    assert store.got == [0, 1, 3, 2]
    assert not queue.has_left()


def test_where_mlflow_is_required_the_opening_must_not_be_refused(queue, store):
    store.refuses = lambda record: True
    said: list[str] = []
    queue.put(metrics(0), {**metrics(1), "do": "open"}, metrics(2))
    assert str(Courier(queue, store, said.append).deliver(strict=True)) == "bad step 1"
    assert queue.num_waiting() == 2
    assert len(queue.refused()) == len(said) == 1  # what an earlier process left does not stop this one


def test_at_the_bound_metrics_are_lost_and_counted_and_nothing_else(queue, store, monkeypatch):
    monkeypatch.setattr(tracking_queue, "MAX_BYTES", 200)
    for step in range(10):
        queue.put(metrics(step))
    queue.put({**metrics(10), "do": "finish"})
    num_kept = queue.num_waiting() - 1
    assert 0 < num_kept < 10
    assert queue.num_lost() == 10 - num_kept
    Courier(queue, store, pytest.fail).deliver()
    assert store.got == [*range(num_kept), 10]
    queue.put(metrics(11))
    assert queue.num_waiting() == 1


def _put_many(folder, run):
    for step in range(200):
        Queue(folder).put(metrics(step, run))


def test_several_processes_put_while_one_delivers(queue, store):
    processes = [
        multiprocessing.get_context("fork").Process(target=_put_many, args=(queue.folder, run)) for run in "ab"
    ]
    for process in processes:
        process.start()
    courier = Courier(queue, store, pytest.fail)
    while any(process.is_alive() for process in processes):
        assert courier.deliver() is None
    assert courier.deliver() is None
    assert sorted(store.got) == sorted([*range(200), *range(200)])


def test_the_thread_says_once_that_it_is_away_and_once_that_it_is_back(queue, store, monkeypatch):
    monkeypatch.setattr(tracking_queue, "_MAX_REST_S", 0.01)
    monkeypatch.setattr(tracking_queue, "_POLL_S", 0.01)
    attempts, delivered = threading.Semaphore(0), threading.Event()

    def send(records):
        attempts.release()
        store(records)
        delivered.set()

    said: list[str] = []
    is_back = threading.Event()

    def say(text):
        said.append(text)
        if "is back" in text:
            is_back.set()

    store.is_away = True
    courier = Courier(queue, send, say)
    courier.start()
    for step in range(3):
        queue.put(metrics(step))
        assert attempts.acquire(timeout=300)
    store.is_away = False
    assert delivered.wait(300)
    assert is_back.wait(300)
    queue.put(metrics(3))
    courier.finish(300)
    assert store.got == [0, 1, 2, 3]
    assert courier.problem == ""
    assert [text[8:] for text in said] == [
        f": no answer; the work goes on, and its records wait in {queue.folder}",
        ": MLflow is back; 3 records delivered that had waited",
    ]


def test_the_end_does_not_wait_for_what_does_not_answer(queue, store):
    """Neither where that is known at once nor where a request hangs."""
    store.is_away = True
    courier = Courier(queue, store, pytest.fail)
    queue.put(metrics(0))
    courier._is_last = True  # so that the first attempt is the last
    courier.start()
    courier.finish(300)
    assert courier.problem == "no answer"
    hanging, answered = threading.Event(), threading.Event()

    def hangs(records):
        hanging.set()
        answered.wait(300)

    courier = Courier(queue, hangs, pytest.fail)
    courier.start()
    assert hanging.wait(300)
    courier.finish(0.01)
    assert queue.num_waiting() == 1
    answered.set()
