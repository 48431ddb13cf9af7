"""The mesh that is drawn: hand, forearm and sleeve together, with what does not change from clip to clip."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.frames.synthetic.anatomy import BONE_INDEX, finger_bones
from pipeline.frames.synthetic.model import FINGERTIP_VERTICES, HandModel, load_hand_model
from pipeline.frames.synthetic.sleeve import NUM_SLEEVE_VERTICES, sleeve_faces
from pipeline.hands import FINGERS


@dataclass(frozen=True)
class DressedMesh:
    """Topology and skin maps of hand and sleeve. V vertices (the hand's first), F faces (the hand's first).

    An object is a sleeve without a hand.
    """

    faces: Tensor
    """(F, 3) int64."""
    num_hand_vertices: int
    num_hand_faces: int
    skin_weights: Tensor
    """(V, J) how much each vertex follows each bone; the sleeve follows the forearm."""
    faces_of_vertex: Tensor
    """(D, V) int64 faces around each vertex; F where there are fewer than D."""
    surface: Tensor
    """(V, 7) what is interpolated over the surface: rest position (3), then palm, redness, crease and nail in 0..1.

    The sleeve's rest positions are zero here: they differ from clip to clip.
    """


@lru_cache(maxsize=4)
def load_dressed_mesh(device: str | torch.device = "cpu") -> DressedMesh:
    """The mesh of hand and sleeve, built once for each device."""
    model = load_hand_model("cpu")
    num_hand_vertices = len(model.vertices)
    faces = torch.cat([model.faces, sleeve_faces() + num_hand_vertices])
    sleeve_weights = torch.zeros(NUM_SLEEVE_VERTICES, model.skin_weights.shape[1])
    sleeve_weights[:, BONE_INDEX["forearm"]] = 1
    maps = torch.cat([model.vertices, torch.stack([_palm(model), *_redness_and_creases(model), model.nail], 1)], 1)
    return DressedMesh(
        faces=faces.to(device),
        num_hand_vertices=num_hand_vertices,
        num_hand_faces=len(model.faces),
        skin_weights=torch.cat([model.skin_weights, sleeve_weights]).to(device),
        faces_of_vertex=faces_of_vertex(faces, num_hand_vertices + NUM_SLEEVE_VERTICES).to(device),
        surface=F.pad(maps, (0, 0, 0, NUM_SLEEVE_VERTICES)).to(device),
    )


def vertex_normals(points: Tensor, faces: Tensor, around_vertex: Tensor) -> Tensor:
    """Unit normals (V, B, 3), pointing outwards: the mean of the faces around each vertex, weighted by area.

    points: (V, B, 3). faces: (F, 3). around_vertex: (D, V), see `faces_of_vertex`. Sums in a fixed order, so that results never vary.
    """
    corner_0, corner_1, corner_2 = (points.index_select(0, faces[:, k]) for k in range(3))
    normals = torch.linalg.cross(corner_1 - corner_0, corner_2 - corner_0, dim=-1)
    normals = F.pad(normals, (0, 0, 0, 0, 0, 1))
    total = normals.index_select(0, around_vertex[0])
    for around in around_vertex[1:]:
        total += normals.index_select(0, around)
    return F.normalize(total, dim=-1)


def faces_of_vertex(faces: Tensor, num_vertices: int) -> Tensor:
    """Faces (F, 3) around each vertex (D, V), filled up with F."""
    vertex, order = faces.reshape(-1).sort(stable=True)
    counts = torch.bincount(vertex, minlength=num_vertices)
    position = torch.arange(len(vertex)) - (counts.cumsum(0) - counts)[vertex]
    table = torch.full((int(counts.max()), num_vertices), len(faces))
    table[position, vertex] = order // 3
    return table


def _palm(model: HandModel) -> Tensor:
    """(V,) one on the palm's side of hand and fingers, fading at the wrist."""
    outwards = torch.tensor([0.0, 0.0, 1.0]).repeat(len(model.bone_heads), 1)
    for finger in FINGERS:
        bones = list(finger_bones(finger))
        outwards[bones] = model.dorsal_axes[bones]
    dorsal = F.normalize(model.skin_weights @ outwards, dim=-1)
    neighbours = faces_of_vertex(model.faces, len(model.vertices))
    normals = vertex_normals(model.vertices[:, None], model.faces, neighbours)[:, 0]
    facing_out = (normals * dorsal).sum(-1)
    beyond_wrist = torch.sigmoid((model.vertices[:, 0] - 0.02) * 22)
    return torch.sigmoid(-(facing_out + 0.15) * 5) * beyond_wrist


def _redness_and_creases(model: HandModel) -> tuple[Tensor, Tensor]:
    """(V,) redness over knuckles and finger pads, and (V,) skin creases at the finger joints."""
    redness, creases = torch.zeros(len(model.vertices)), torch.zeros(len(model.vertices))
    for finger, tip in zip(FINGERS, FINGERTIP_VERTICES, strict=True):
        bones = finger_bones(finger)
        own = model.skin_weights[:, list(bones)].sum(1).clamp(0, 1)
        for bone in bones[1:] if finger == "thumb" else bones:
            along = (model.vertices - model.bone_heads[bone]) @ model.bone_directions[bone]
            redness = torch.maximum(redness, 0.8 * own * torch.exp(-((along / 0.03) ** 2)))
            if bone != bones[0]:
                creases = torch.maximum(creases, own * torch.exp(-((along / 0.010) ** 2)))
        from_tip = (model.vertices - model.vertices[tip]).norm(dim=-1)
        redness = torch.maximum(redness, 0.9 * torch.exp(-((from_tip / 0.06) ** 2)))
    return redness, creases
