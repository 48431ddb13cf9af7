import hashlib

import numpy as np
import pytest

from pipeline.frames.splits import FREIHAND_NUM_IDS, freihand_label_split
from tests.conftest import golden


@pytest.mark.parametrize("fraction", [0.9999999999, 0.9, 0.8, 0.4, 0.2, 0.1])
def test_reference(fraction):
    v = golden("h_split_seed5")
    tag = str(fraction).replace(".", "p")
    train, validation = freihand_label_split(fraction, seed=5)
    assert len(train) == v[f"n_train_{tag}"]
    assert len(validation) == v[f"n_val_{tag}"]
    np.testing.assert_array_equal(train[:20], v[f"train_first20_{tag}"])
    np.testing.assert_array_equal(train[-5:], v[f"train_last5_{tag}"])
    np.testing.assert_array_equal(validation[:20], v[f"val_first20_{tag}"])
    assert hashlib.sha256(train.astype("<i8").tobytes()).hexdigest() == str(v[f"train_sha256_{tag}"])


def test_scikit_learn_agrees():
    model_selection = pytest.importorskip("sklearn.model_selection")
    train, _ = model_selection.train_test_split(np.arange(FREIHAND_NUM_IDS), train_size=0.05, random_state=15)
    np.testing.assert_array_equal(freihand_label_split(0.05, seed=15)[0], np.sort(train))


def test_every_id_is_on_one_side():
    train, validation = freihand_label_split(0.3)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(FREIHAND_NUM_IDS))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        freihand_label_split(fraction)
