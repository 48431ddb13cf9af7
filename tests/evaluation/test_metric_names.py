import pytest

from pipeline.evaluation.metric_names import METRICS, recorded_name


@pytest.mark.parametrize(
    ("key", "label", "unit", "lower_is_better"),
    [
        ("val_pa_epe_mm", "validation PA-EPE", "mm", True),
        ("val_mpjpe_mm", "validation root-relative EPE", "mm", True),
        ("val_constant_pa_epe_mm", "validation PA-EPE of one fixed hand", "mm", None),
        ("val_constant_epe_2d", "validation 2D EPE of one fixed hand", "hand sizes", None),
        ("probe_pa_epe_mm", "ridge PA-EPE", "mm", True),
        ("probe_constant_pa_epe_mm", "fixed hand PA-EPE", "mm", None),
        ("pa_epe_mm", "PA-EPE", "mm", True),
        ("constant_mpjpe_mm", "root-relative EPE of one fixed hand", "mm", None),
        ("wall_s", "wall time", "s", None),
        ("loss_3d", "loss 3d", "", None),
        ("checkpoint_pause_s", "checkpoint pause", "s", None),
        ("s", "s", "", None),
    ],
)
def test_what_runs_record_has_a_name_and_a_unit(key, label, unit, lower_is_better):
    name = recorded_name(key)
    assert (name.label, name.unit, name.lower_is_better) == (label, unit, lower_is_better)


def test_the_names_of_an_evaluation_stay_as_they_are():
    assert all(recorded_name(key) == name for key, name in METRICS.items())
