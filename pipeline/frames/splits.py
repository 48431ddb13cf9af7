"""The published split of FreiHAND for a label fraction."""

import numpy as np

FREIHAND_NUM_IDS = 32_560
FREIHAND_NUM_BACKGROUNDS = 4


def freihand_label_split(fraction: float, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Sorted FreiHAND ids (train, validation), int64 of 0 ... 32,559, where a `fraction` of the ids has labels.

    Id i stands for four images: i, i + 32,560, i + 65,120, i + 97,680 (four backgrounds), which stay on one side. Equal
    to scikit-learn's train_test_split(train_size=fraction, random_state=seed), which the PeCLR code uses with seed 5.
    Raises ValueError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the label fraction must lie between 0 and 1, not {fraction}")
    shuffled = np.random.RandomState(seed).permutation(FREIHAND_NUM_IDS)
    num_train = int(np.floor(fraction * FREIHAND_NUM_IDS))
    validation, train = np.split(shuffled, [FREIHAND_NUM_IDS - num_train])
    return np.sort(train).astype(np.int64), np.sort(validation).astype(np.int64)
