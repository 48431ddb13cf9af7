"""What is drawn: a mesh, how bones move it, and what it is made of. Hands and simple objects alike."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.frames.synthetic.appearance import Cloth, Skin
from pipeline.frames.synthetic.mesh import DressedMesh, faces_of_vertex


@dataclass(frozen=True)
class Body:
    """A mesh of V vertices that J bones move through T frames."""

    mesh: DressedMesh
    rest_vertices: Tensor
    """(V, 3) at rest, in hand lengths."""
    to_camera: Tensor
    """(T, J, 3, 4) float64: what takes the points of each bone from rest to the camera frame, metres."""
    skin: Skin
    cloth: Cloth
    """Fabric of the sleeve; of an object, all of its surface."""
    texture_offset: float
    """Where in the solid noise the texture lies."""
    shift: Tensor | None = None
    """(T, J, 3, 4) float64: how `to_camera` changes while the shutter is open; None = nothing blurs."""


def solid_mesh(vertices: np.ndarray, faces: np.ndarray) -> DressedMesh:
    """The mesh of an object: vertices (V, 3), faces (F, 3), counter-clockwise seen from outside."""
    surface = torch.zeros(len(vertices), 7)
    surface[:, :3] = torch.from_numpy(vertices)
    triangles = torch.from_numpy(faces)
    return DressedMesh(
        faces=triangles,
        num_hand_vertices=0,
        num_hand_faces=0,
        skin_weights=torch.ones(len(vertices), 1),
        faces_of_vertex=faces_of_vertex(triangles, len(vertices)),
        surface=surface,
    )


def box(half_sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (24, 3) and faces (12, 3) of a box; its sides share no vertices, so that its edges are sharp."""
    vertices: list[np.ndarray] = []
    faces: list[list[int]] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            right, up = np.eye(3)[(axis + 1) % 3] * sign, np.eye(3)[(axis + 2) % 3]
            corners = [np.eye(3)[axis] * sign + a * right + b * up for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            first = len(vertices)
            vertices += corners
            faces += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
    return np.array(vertices) * half_sides, np.array(faces)


_AROUND, _ALONG = 20, 9


def lathe(profile_x: np.ndarray, profile_radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A surface of revolution about x, from x (R,) rising and radius (R,), whose ends are closed where the radius is zero."""
    angle = np.arange(_AROUND) * (2 * np.pi / _AROUND)
    ring = np.stack([np.zeros(_AROUND), np.cos(angle), np.sin(angle)], -1)
    vertices = profile_radius[:, None, None] * ring + profile_x[:, None, None] * np.eye(3)[0]
    row, around = np.divmod(np.arange((len(profile_x) - 1) * _AROUND), _AROUND)
    near, near_next = row * _AROUND + around, row * _AROUND + (around + 1) % _AROUND
    far, far_next = near + _AROUND, near_next + _AROUND
    triangles = np.stack([np.stack([near, near_next, far], 1), np.stack([near_next, far_next, far], 1)], 1)
    return vertices.reshape(-1, 3), triangles.reshape(-1, 3)


def cylinder(half_length: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a cylinder about x with sharp rims."""
    return lathe(half_length * np.array([-1, -1, -1, 1, 1, 1]), radius * np.array([0, 1, 1, 1, 1, 0]))


def ellipsoid(half_sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of an ellipsoid."""
    angle = np.linspace(0, np.pi, _ALONG)
    vertices, faces = lathe(-np.cos(angle), np.sin(angle))
    return vertices * half_sides, faces
