"""Verdicts on made-up tables: what is there is shown, what is not is not, and nothing is claimed below the constant."""

import pytest

from pipeline.study.findings import TITLES, findings
from tests.study.made_up import study

GOOD = {"scratch": 14.0, "simclr": 13.0, "simclr-same-views": 12.9, "peclr": 12.0}
FALLING = {0.125: 13.6, 0.5: 12.8, 1.0: 12.0}


def verdicts(results, metric="pa_epe"):
    found = findings(results, metric)
    assert [each.title for each in found] == list(TITLES)
    return found


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("−", "-")


def test_what_is_there_is_shown():
    found = verdicts(study(GOOD, unlabelled=FALLING))
    assert [each.outcome for each in found] == ["shown"] * 3
    first, second, third = (plain(each.sentence) for each in found)
    assert first.startswith("Shown: peclr is better than scratch. PA-EPE 12.")
    assert "mm (scratch), -1" in first
    assert "3 seeds, 60 test clips" in first
    assert "better than simclr-same-views" in second  # the better one of the two
    assert "falls at every step over a factor of 8.0" in third
    assert "2,000 / 8,000 / 16,000 unlabelled frames" in third


@pytest.mark.parametrize("metric", ["root_relative_epe", "probe_pa_epe", "probe_root_relative_epe"])
def test_the_same_holds_for_the_other_errors(metric):
    assert [each.outcome for each in verdicts(study(GOOD, unlabelled=FALLING), metric)] == ["shown"] * 3


def test_no_difference_is_not_shown():
    same = dict.fromkeys(GOOD, 12.5)
    found = verdicts(study(same, unlabelled=dict.fromkeys(FALLING, 12.5)))
    assert [each.outcome for each in found] == ["not shown"] * 3
    assert all("no clear difference" in each.sentence for each in found)


def test_the_opposite_is_called_so():
    found = verdicts(study({**GOOD, "peclr": 14.2}, unlabelled={0.125: 12.0, 0.5: 12.6, 1.0: 13.5}))
    assert [each.outcome for each in found] == ["not shown"] * 3
    assert "peclr is worse than simclr-same-views" in found[1].sentence
    assert "with more frames the error rises" in found[2].sentence


def test_nothing_is_claimed_of_a_model_that_one_fixed_hand_equals():
    """Pretrained far better than from scratch, and still no better than the constant."""
    found = verdicts(
        study(
            {"scratch": 25.0, "simclr": 20.0, "simclr-same-views": 20.0, "peclr": 14.7},
            unlabelled={0.125: 19.0, 0.5: 17.0, 1.0: 14.7},
        )
    )
    assert [each.outcome for each in found] == ["not shown"] * 3
    for each in found:
        assert "peclr is not clearly better than one fixed hand, the constant pose (14." in plain(each.sentence)
    # By the other error it is much better than its constant, 100 mm, and that is said there.
    close = study({"scratch": 16.0, "simclr": 15.9, "simclr-same-views": 15.8, "peclr": 14.7})
    assert verdicts(close)[0].outcome == "not shown"
    assert verdicts(close, "root_relative_epe")[0].outcome == "shown"


def test_fewer_than_three_seeds_show_nothing():
    found = verdicts(study(GOOD, seeds=2, unlabelled=FALLING))
    assert [each.outcome for each in found] == ["not shown"] * 3
    assert all("2 seeds in common, 3 are needed" in each.sentence for each in found)


def test_seeds_that_disagree_show_nothing():
    found = verdicts(study({**GOOD, "peclr": 12.6}, spread=1.5))
    assert found[1].outcome == "not shown"
    assert "no clear difference" in found[1].sentence


def test_steps_that_do_not_all_fall_are_not_monotone():
    found = verdicts(study(GOOD, unlabelled={0.125: 13.6, 0.5: 11.5, 1.0: 12.3}))
    assert found[2].outcome == "not shown"
    assert "falls, but not at every step" in found[2].sentence


def test_unequal_budgets_show_nothing():
    found = verdicts(study(GOOD, pretrain_seen={"peclr": 128_000}))
    assert [each.outcome for each in found[:2]] == [
        "shown",
        "not shown",
    ]  # from scratch there is no budget to be equal to
    assert "have not seen equally many frames" in found[1].sentence


def test_missing_cells_are_not_judged():
    without = {name: value for name, value in GOOD.items() if name != "simclr"}
    found = verdicts(study(without))
    assert [each.outcome for each in found] == ["shown", "not judged", "not judged"]
    assert "no cell of simclr is done" in found[1].sentence
    assert "3 numbers of unlabelled frames are needed" in found[2].sentence
    assert [each.outcome for each in verdicts(study({}))] == ["not judged"] * 3
    assert verdicts(study({"scratch": 14.0}))[0].sentence.startswith("Not judged: no cell of peclr")
    two = verdicts(study(GOOD, unlabelled={0.5: 12.8, 1.0: 12.0}))
    assert two[2].outcome == "not judged"


def test_a_study_that_makes_no_claims_says_so():
    found = verdicts(study(GOOD, claims=False, unlabelled=FALLING))
    assert [each.outcome for each in found] == ["not judged"] * 3
    assert all(each.sentence.startswith("No claim") for each in found)
