import pytest

from pipeline.search.records import FAILED, RUNNING, TrialRecord, folder_of, read_records, write_record
from pipeline.storage import join, write_json
from tests.training.damage import damage


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_records_are_read_as_they_were_written(storage, tmp_path, request, caplog):
    search = str(tmp_path) if storage == "local" else join(request.getfixturevalue("s3"), "search")
    assert read_records(search) == []
    records = [TrialRecord(number, {"learning_rate": 0.1 / (number + 1)}, RUNNING) for number in range(12)]
    records[3].state, records[3].error = FAILED, "why"
    for record in reversed(records):
        write_record(search, record)
    assert read_records(search) == records
    assert records[3].best is None
    assert caplog.text == ""


def test_the_work_of_all_seeds_and_of_the_pretraining_counts():
    record = TrialRecord(0, {}, other_seconds={"seed-1": 20.0, "pretraining": 300.0})
    assert record.seconds == 320.0
    record.history = [{"score": 1.0, "wall_s": 5.0}, {"score": 1.0, "wall_s": 11.0}]
    assert record.seconds == 331.0


def test_a_trial_of_which_nothing_is_known_is_left_out_and_said(tmp_path, caplog):
    search = str(tmp_path)
    for number in range(3):
        write_record(search, TrialRecord(number, {}))
    damage(f"{folder_of(search, 1)}/trial.json", "cut off")
    assert [record.number for record in read_records(search)] == [0, 2]
    assert caplog.text == ""  # it had not got anywhere
    write_json(f"{folder_of(search, 1)}/checkpoint_000001/meta.json", {})
    assert [record.number for record in read_records(search)] == [0, 2]
    assert f"{folder_of(search, 1)}: left out, as what it tried is not known" in caplog.text
