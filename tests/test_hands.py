import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import hands
from tests.conftest import golden

orders = st.sampled_from(sorted(hands.JOINT_ORDERS))


@pytest.mark.parametrize(
    ("source", "target"),
    [("freihand", "ait"), ("ait", "freihand"), ("mano", "ait"), ("interhand", "ait")],
)
def test_reference_orders(source, target):
    vectors = golden("e_joint_order")
    assert hands.joint_index(source, target) == vectors[f"index_{source}_to_{target}"].tolist()
    reordered = hands.reorder(torch.from_numpy(vectors["x"]), source, target)
    np.testing.assert_array_equal(reordered, vectors[f"{source}_to_{target}"])


def test_reference_prediction_script():
    """It brings joints back by a table of its own."""
    vectors = golden("e_joint_order")
    np.testing.assert_array_equal(
        hands.reorder(vectors["x"], "ait", "freihand"), vectors["convert_order_ait_to_freihand"]
    )


def test_reference_names():
    vectors = golden("e_joint_order")
    assert hands.JOINT_ORDERS["ait"] == tuple(vectors["ait_names"])
    for order in hands.JOINT_ORDERS:
        numbers = [hands.JOINT_ORDERS[order].index(name) for name in vectors["ait_names"]]
        assert numbers == vectors[f"{order}_id"].tolist()


def test_reference_joints_of_a_mesh():
    vectors = golden("e_joint_order")
    joints = hands.joints_from_mesh(vectors["random_vertices"], vectors["random_regressor"])
    # Stored in float32, whose sums depend on the machine in the last digit.
    np.testing.assert_allclose(joints, vectors["joints_from_mesh"], atol=2e-7)
    assert list(hands.MANO_TIP_VERTICES.values()) == vectors["tip_vertex_ids"].tolist()
    np.testing.assert_array_equal(joints[16:], vectors["random_vertices"][vectors["tip_vertex_ids"]])


def test_mano_to_openpose_as_published():
    # hamer/models/mano_wrapper.py
    published = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
    assert hands.joint_index("mano", "freihand") == published


@given(orders, orders, orders)
def test_orders_compose_and_return(first, second, third):
    joints = torch.randn(2, 3, 21, 3)
    there = hands.reorder(joints, first, second)
    assert torch.equal(hands.reorder(there, second, first), joints)
    assert torch.equal(hands.reorder(there, second, third), hands.reorder(joints, first, third))


def test_arrays_are_reordered_too():
    joints = np.random.default_rng(0).normal(size=(21, 2))
    np.testing.assert_array_equal(hands.reorder(joints), hands.reorder(torch.from_numpy(joints)))


def test_every_order_has_every_joint_once():
    for names in hands.JOINT_ORDERS.values():
        assert sorted(names) == sorted(hands.JOINTS)


def test_bones_form_a_tree_from_the_wrist():
    children = [child for _, child in hands.BONES]
    assert sorted(children) == list(range(1, 21))
    assert all(parent == hands.WRIST or parent in children for parent, _ in hands.BONES)
    assert set(hands.FINGER_COLOURS) == set(hands.FINGERS)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown joint order 'coco'"):
        hands.reorder(torch.zeros(21, 3), "coco")
    with pytest.raises(ValueError, match="must be"):
        hands.reorder(torch.zeros(20, 3))
