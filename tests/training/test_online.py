import pytest
import torch

from pipeline.errors import DataError
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.objectives import ObjectiveSettings
from pipeline.training.online import OnlineProbe, ProbeSettings
from pipeline.views import ViewSettings
from tests.tiny_sets import write_tiny_set


@pytest.mark.parametrize("name", ["peclr", "pairwise"])
def test_probes_of_frozen_features(name, tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 96, "val": 32})
    torch.manual_seed(0)
    heads = ProjectionSettings(hidden=16, outputs=8, pairwise_hidden=16)
    model = PretrainModel(EncoderSettings(width=8), heads, ObjectiveSettings(name=name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    probe = OnlineProbe(ProbeSettings(enabled=True), uri, ViewSettings(size=32), torch.device("cpu"))
    scores, pictures = probe.run(model, with_pictures=True)
    assert set(pictures) == {"neighbours.png"}
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert 0 < scores["probe_pa_epe_mm"] < 100
    assert 0 < scores["probe_retrieval_epe_mm"] < 100
    assert 0 < scores["probe_retrieval_random_pa_epe_mm"] < 100
    # A pairwise model has no projection that could turn.
    assert ("probe_equivariance_cosine" in scores) == (name == "peclr")
    assert -1 <= scores.get("probe_equivariance_cosine", 0) <= 1


def test_a_probe_is_due_every_few_epochs_and_at_the_end():
    due = ProbeSettings(enabled=True, every_epochs=4).due
    assert [due(epoch, last=epoch == 10) for epoch in range(1, 11)] == [e in (4, 8, 10) for e in range(1, 11)]
    assert not ProbeSettings(every_epochs=4).due(4, last=True)


def test_a_probe_bears_a_few_bad_frames_as_the_run_does(tmp_path):
    uri = str(tmp_path)
    write_tiny_set(uri, splits={"train": 96, "val": 32}, broken=frozenset({3, 50, 97}))
    settings = ProbeSettings(enabled=True)
    OnlineProbe.check(settings, uri)
    heads = ProjectionSettings(hidden=16, outputs=8)
    model = PretrainModel(EncoderSettings(width=8), heads, ObjectiveSettings())
    scores, _ = OnlineProbe(settings, uri, ViewSettings(size=32), torch.device("cpu")).run(model, with_pictures=False)
    assert scores["probe_bad_frames"] == 3
    assert 0 < scores["probe_pa_epe_mm"] < 100

    write_tiny_set(uri, splits={"train": 96, "val": 32}, broken=frozenset(range(96, 128, 4)))
    with pytest.raises(DataError, match=r"8 frames are unusable: tiny/val-\S+, .* \(JPEG does not decode\)"):
        OnlineProbe.check(settings, uri)
