"""The published data sets give the same rows from object storage."""

import numpy as np

from pipeline.frames.sources.dexycb import DexYcbSettings
from pipeline.frames.sources.ho3d import Ho3dSettings
from pipeline.frames.sources.interhand import InterHandSettings
from pipeline.storage import copy_from_local
from tests.conftest import s3_environment
from tests.frames.sources.dexycb_set import write_dexycb
from tests.frames.sources.ho3d_set import write_ho3d
from tests.frames.sources.interhand_set import write_interhand
from tests.frames.sources.reading import read


def test_rows_are_the_same_from_object_storage(tmp_path, s3_endpoint, monkeypatch):
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="published-sets")
    write_interhand(tmp_path / "interhand")
    write_ho3d(tmp_path / "ho3d", 3)
    write_dexycb(tmp_path / "dexycb")
    copy_from_local(tmp_path, "s3://published-sets/all")
    for kind in (InterHandSettings, Ho3dSettings, DexYcbSettings):
        name = kind.model_fields["kind"].default
        here, rejects, _ = read(kind(uri=str(tmp_path / name)), image_size=64)
        there, same_rejects, _ = read(kind(uri=f"s3://published-sets/all/{name}"), image_size=64)
        assert here.keys() == there.keys()
        assert rejects.to_json() == same_rejects.to_json()
        for name, row in here.items():
            assert row["jpeg"] == there[name]["jpeg"]
            np.testing.assert_array_equal(row["joints_3d"], there[name]["joints_3d"])
