"""What is said of a winner, for arms whose differences are known."""

import numpy as np
import pytest
from scipy import stats

from pipeline.campaign.judgement import deciding_error, judge
from tests.campaign.made_up import arm, clip_errors


def test_the_interval_over_seeds_is_welchs_of_their_means():
    winner, default = arm([20.0, 20.4, 19.8]), arm([22.0, 23.0, 21.5])
    judgement = judge(winner, default, "pa_epe_mm")
    means = [[np.mean(each.means) for each in errors] for errors in (winner, default)]
    squares = [np.var(each, ddof=1) / len(each) for each in means]
    freedom = sum(squares) ** 2 / sum(square**2 / 2 for square in squares)  # Welch and Satterthwaite, three seeds each
    middle, half = np.mean(means[0]) - np.mean(means[1]), stats.t.ppf(0.975, freedom) * sum(squares) ** 0.5
    assert judgement.seeds_interval == pytest.approx((middle - half, middle + half), rel=1e-6)
    assert judgement.against_default is not None
    assert judgement.against_default.value == pytest.approx(np.mean(means[0]))
    assert judgement.beats_default
    assert judgement.beats_constant
    first, second, third = judgement.sentences()
    assert first.startswith("The winner is better than always answering one fixed hand: PA-EPE ")
    assert second.startswith("The default model is better than always answering one fixed hand: PA-EPE ")
    assert third.startswith("The winner is better than the default settings by more than the seeds differ: PA-EPE ")
    assert "by 3 seeds of each" in third


@pytest.mark.parametrize(
    ("winner", "default", "said"),
    [
        # On average 2 mm better, as is only one seed in three.
        (
            arm([16.0, 22.0, 20.0]),
            arm([21.0, 22.0, 21.0]),
            "The winner is not better than the default settings by more",
        ),
        (arm([24.0, 24.2, 24.1]), arm([22.0, 22.1, 22.0]), "The winner is worse than the default settings by more"),
        (arm([20.0]), arm([22.0]), "Whether the winner is better than the default settings is not known: "),
        (
            arm([20.0, 20.1, 20.0], num_clips=4),
            arm([22.0, 22.1, 22.0], num_clips=4),
            "The winner is better than the default settings by more than the seeds differ, but the test clips are too few",
        ),
        (
            # Each seed says the same, but of one kind of clip only.
            arm([20.0, 20.1, 20.0], noise=0.0),
            [
                type(each)(
                    each.clips,
                    each.frames,
                    [20.0 + 60 * (number == 0) + (number % 2) for number in range(40)],
                    each.constant,
                )
                for each in arm([0.0, 0.0, 0.0])
            ],
            "The winner is better than the default settings by more than the seeds differ, but the test clips",
        ),
        (arm([20.0, 21.0]), [], "The best trial has the default settings: "),
    ],
)
def test_it_says_no_more_than_the_seeds_and_clips_do(winner, default, said):
    judgement = judge(winner, default, "pa_epe_mm")
    assert not judgement.beats_default
    assert judgement.sentences()[-1].startswith(said)


def test_the_constant_comes_first():
    judgement = judge(arm([31.0, 31.1, 31.0]), arm([33.0, 33.1, 33.0]), "pa_epe_mm")
    assert judgement.beats_default
    assert not judgement.beats_constant
    sentences = judgement.sentences()
    assert sentences[0].startswith("The winner is worse than always answering one fixed hand: ")
    assert sentences[-1].endswith("Neither is better than one fixed hand, so this difference means little.")
    unknown = judge(arm([31.0], constant=None), arm([33.0], constant=None), "pa_epe_mm")
    assert not unknown.beats_constant
    assert "is not known: its labels give no constant pose" in unknown.sentences()[0]


def test_errors_in_the_image_are_told_in_percent_of_the_hand():
    def image(mean: float, seed: int):
        errors = clip_errors(mean, seed=seed)
        return type(errors)(errors.clips, errors.frames, [each / 1000 for each in errors.means], None)

    winner, default = [image(20, 0), image(21, 1)], [image(40, 2), image(41, 3)]
    judgement = judge(winner, default, "epe_2d")
    assert judgement.against_default is not None
    assert judgement.against_default.value == pytest.approx(2.05, abs=0.05)
    assert judgement.seeds_interval is not None
    assert np.mean(judgement.seeds_interval) == pytest.approx(-2.0, abs=0.05)
    assert "2D EPE 2.1\u00a0% of the hand against 4.1\u00a0% of the hand" in judgement.sentences()[-1]


@pytest.mark.parametrize(
    ("best_by", "error"),
    [
        (None, "pa_epe_mm"),
        ("pa_epe_mm", "pa_epe_mm"),
        ("pa_skill", "pa_epe_mm"),
        ("mpjpe_skill", "root_relative_epe_mm"),
        ("mpjpe_mm", "root_relative_epe_mm"),
        ("epe_2d", "epe_2d"),
    ],
)
def test_what_the_search_judged_by_decides(best_by, error):
    everything = dict.fromkeys(("pa_epe_mm", "root_relative_epe_mm", "epe_mm", "epe_2d"))
    assert deciding_error(best_by, everything) == error
    assert deciding_error(best_by, {"epe_2d": None}) == "epe_2d"
