"""The answer in words says no more than the numbers: which, by how much, whether more than chance, and one fixed hand."""

import numpy as np
import pytest

from pipeline.reports.compare_data import SeedGroup
from pipeline.reports.compare_words import Chance, answer, model_tests, p_text
from pipeline.reports.verdict import Comparison
from tests.reports.made_up import errors_around, measured_with, run_with


def said(*arguments) -> list[str]:
    return [part.text.replace("\u00a0", " ") for part in answer(*arguments)]


def test_a_better_model_by_how_much_and_that_it_is_more_than_chance():
    measured = measured_with({"a": errors_around(15, 1), "b": errors_around(12, 2)})
    which, hand = answer([], measured, [])
    text = which.text.replace("\u00a0", " ")
    assert text.startswith("b has the smallest PA-EPE: 12.0 mm against 15.0 mm of a, −20.0 %.")
    assert "That is more than chance: 95 % interval −" in text
    assert text.endswith("p < 0.001.")
    assert (which.outcome, which.badge) == ("better", "A clear difference")
    assert hand.text.startswith("Every model is better than always answering one fixed hand (error −")
    assert (hand.outcome, hand.badge) == ("better", "Better than one fixed hand")


def test_the_first_may_be_the_best_one():
    measured = measured_with({"a": errors_around(12, 1), "b": errors_around(15, 2), "c": errors_around(18, 3)})
    text = said([], measured, [])[0]
    assert text.startswith("a has the smallest PA-EPE: 12.0 mm; next comes b with 15.0 mm, +25.0 %.")
    assert "more than chance: 95 % interval +" in text
    assert "after Holm's correction for 2 comparisons" in text


def test_a_difference_within_chance_is_called_so():
    measured = measured_with({"a": errors_around(15, 1), "b": errors_around(15, 2)})
    which, _ = answer([], measured, [])
    assert "That may be chance: the 95" in which.text
    assert "holds zero" in which.text
    assert (which.outcome, which.badge) == ("unclear", "No clear difference")


def test_what_is_sure_alone_may_not_be_so_among_many():
    """An interval that leaves out zero by a little, and a p that several comparisons raise above the level."""
    comparison = Comparison(
        model="b",
        baseline="a",
        value=14,
        baseline_value=15,
        num_frames=100,
        num_clips=25,
        interval_percent=(-13, -0.5),
        p_value=0.03,
    )
    alone, among = Chance(comparison, None, 1), Chance(comparison, 0.12, 4)
    assert alone.outcome == "better"
    assert alone.sentence().startswith("That is more than chance")
    assert among.outcome == "unclear"
    text = among.sentence().replace("\u00a0", " ")
    assert text == (
        "That may be chance: the 95 % interval −13.0 % to −0.5 % leaves out zero, but among so many comparisons this is not "
        "enough, p = 0.120 after Holm's correction for 4 comparisons."
    )


def test_few_clips_are_not_enough_even_where_all_agree():
    better = errors_around(12, 2, num_clips=5)
    measured = measured_with({"a": better + 1, "b": better}, num_clips=5)
    which = answer([], measured, [])[0]
    assert which.outcome == "unclear"
    assert "leaves out zero, but with 5 clips this is not enough" in which.text
    too_few = measured_with({"a": better[:12] + 1, "b": better[:12]}, constant=None, num_clips=3)
    assert "cannot be said: there are fewer than 5 clips" in answer([], too_few, [])[0].text


def test_worse_than_one_fixed_hand_is_said_and_makes_differences_small():
    measured = measured_with({"a": errors_around(25, 1), "b": errors_around(23, 2)})
    which, hand = answer([], measured, [])
    assert (which.outcome, which.badge) == ("unclear", "A clear difference")
    text = hand.text.replace("\u00a0", " ")
    assert text.startswith("Every model is worse than always answering one fixed hand (error +2")
    assert text.endswith("So the differences between the models mean little.")
    assert (hand.outcome, hand.badge) == ("worse", "No better than one fixed hand")

    one = measured_with({"a": errors_around(25, 1), "b": errors_around(15, 2), "c": errors_around(20, 3)})
    which, hand = answer([], one, [])
    assert which.outcome == "better"
    text = hand.text.replace("\u00a0", " ")
    assert text.startswith("a is worse than always answering one fixed hand (error +2")
    assert "c is not clearly better than always answering one fixed hand" in text
    assert "b is better than always" in text
    assert "mean little" not in text
    assert hand.badge == "Not all better than one fixed hand"


def test_a_fixed_hand_that_is_not_known_is_said():
    measured = measured_with({"a": errors_around(15, 1), "b": errors_around(12, 2)}, constant=None)
    hand = said([], measured, [])[1]
    assert hand.startswith("Of a and b it is not known: there is no constant pose")


def seed_group(runs: list[str], against: Comparison | None = None) -> SeedGroup:
    return SeedGroup(runs=runs, seeds=[*range(len(runs))], against_first=against)


def test_groups_of_seeds_are_compared_as_groups():
    errors = {name: errors_around(15 if name in "abc" else 12, seed) for seed, name in enumerate("abcdef")}
    measured = measured_with(errors)
    against = Comparison(
        model="d, e, f",
        baseline="a, b, c",
        value=12,
        baseline_value=15,
        num_frames=120,
        num_clips=30,
        interval_percent=(-22, -18),
        p_value=0.0005,
        num_runs=3,
    )
    groups = [seed_group([*"abc"]), seed_group([*"def"], against)]
    text = said([], measured, groups)[0]
    assert text.startswith("d, e and f have the smallest PA-EPE: 12.0 mm on average of 3 seeds against 15.0 mm")
    assert "95 % interval −22.0 % to −18.0 % over the 3 seeds that both have, and clips, p < 0.001" in text
    # With too few seeds in common nothing was tested.
    groups[1] = seed_group([*"def"])
    which = answer([], measured, groups)[0]
    assert "was not tested: three seeds that both have are needed" in which.text
    assert which.outcome == "unclear"
    # One setting alone has nothing to be compared with.
    alone = answer([], measured_with({name: errors[name] for name in "abc"}), [groups[0]])[0]
    assert alone.text.startswith("The models differ in their seed only: ")


def test_what_was_not_measured_is_compared_by_what_it_recorded():
    metrics = {"probe_pa_epe_mm": 18.25, "probe_constant_pa_epe_mm": 20.0, "loss": 3.0}
    runs = [
        run_with("x", "pretrain", metrics=metrics),
        run_with("y", "pretrain", metrics={**metrics, "probe_pa_epe_mm": 21.5, "loss": 2.0}),
        run_with("z", "pretrain", metrics={"loss": 1.0}),
    ]
    (text,) = said(runs, None, [])
    assert text == (
        "By what the runs recorded, x ends with the smallest ridge PA-EPE: 18.25 mm against 21.5 mm of y (one fixed hand: 20 "
        "mm). Whether that is more than chance is not known: a run records means only. y: no better than always answering one "
        "fixed hand."
    )
    (text,) = said(runs[1:], None, [])
    assert text.startswith("By what the runs recorded, z ends with the smallest loss: 1 against 2 of y.")
    assert "only where objective, temperature and batch are the same" in text
    assert said([runs[0], run_with("e", "evaluate", metrics={"pa_epe_mm": 1.0})], None, []) == []


def test_measured_models_are_not_compared_by_their_records_too():
    measured = measured_with({"a": errors_around(15, 1), "b": errors_around(12, 2)})
    runs = [run_with(name, metrics={"val_pa_epe_mm": 1.0}) for name in "ab"]
    assert len(answer(runs, measured, [])) == 2


def test_tests_of_models_say_how_many_they_are():
    measured = measured_with({name: errors_around(15, seed) for seed, name in enumerate("abcd")})
    assert {run: test.num_tests for run, test in model_tests(measured).items()} == {"b": 3, "c": 3, "d": 3}
    assert [test.p_adjusted for test in model_tests(measured_with({n: np.ones(120) for n in "ab"})).values()] == [None]


@pytest.mark.parametrize(("p", "text"), [(0.0312, "= 0.031"), (0.0009, "< 0.001"), (1.0, "= 1.000")])
def test_small_p_are_bounds(p, text):
    assert p_text(p).replace("\u00a0", " ") == text
