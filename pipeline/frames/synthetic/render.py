"""Draws the frames of a clip."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.frames.synthetic.appearance import Cloth, Lights, Skin
from pipeline.frames.synthetic.clip import Clip
from pipeline.frames.synthetic.mesh import DressedMesh, load_dressed_mesh, vertex_normals
from pipeline.frames.synthetic.noise import sensor_noise
from pipeline.frames.synthetic.occlusion import cast_shadows, lit_share, openness
from pipeline.frames.synthetic.rasteriser import Fragments, rasterise
from pipeline.frames.synthetic.shading import Surface, illuminate, surface_material, unit

FRAMES_AT_ONCE = 8
"""Small enough for a core's cache at 128 pixels."""

_SHADOW_RADIUS = 0.95
"""Half the side of the shadow map, in hand lengths."""
_SHADOW_RESOLUTION = 1.25
"""Cells of the shadow map for each pixel of the picture."""


def render_clip(
    clip: Clip,
    frames: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    frames_at_once: int = FRAMES_AT_ONCE,
) -> Tensor:
    """Frames of a clip as uint8 (N, 3, S, S), RGB, on `device`.

    frames: indices to draw; None draws all. frames_at_once: how many are drawn in one batch; the pictures do not depend on
    it.
    """
    device = torch.device(device)
    chosen = list(range(clip.settings.frames_per_clip) if frames is None else frames)
    mesh = load_dressed_mesh(device)
    scene = _Scene(clip, mesh, device)
    batches = [chosen[start : start + frames_at_once] for start in range(0, len(chosen), frames_at_once)]
    return torch.cat([scene.draw(batch) for batch in batches])


class _Scene:
    """What is computed once for all frames of a clip."""

    def __init__(self, clip: Clip, mesh: DressedMesh, device: torch.device) -> None:
        self.clip, self.mesh, self.device = clip, mesh, device
        self.size = clip.settings.image_size
        self.skin = Skin._make(_to(value, device) for value in clip.skin)
        self.cloth = Cloth._make(_to(value, device) for value in clip.cloth)
        self.lights = Lights(*(value.to(device) for value in clip.lights))
        self.to_camera = clip.to_camera.to(device)
        rest = clip.rest_vertices.to(device)
        homogeneous = F.pad(rest, (0, 1), value=1.0).double()
        self.skinning = (mesh.skin_weights.double()[:, :, None] * homogeneous[:, None]).flatten(1)
        self.surface = mesh.surface.clone()
        self.surface[-(len(rest) - mesh.num_hand_vertices) :, :3] = rest[mesh.num_hand_vertices :]
        brightness = self.lights.ambient_colour.mean() + 0.35 * self.lights.key_colour.mean()
        self.background = _developed(clip.background.to(device) * brightness, clip.exposure)

    def draw(self, frames: list[int]) -> Tensor:
        """uint8 (B, 3, S, S)."""
        supersample = self.clip.settings.supersample
        size = self.size * supersample
        points = self.pose(frames)
        camera = self.clip.scene_camera
        focal, centre = float(camera[0, 0]), float(camera[0, 2])
        x, y, depth = points.unbind(-1)
        inverse = (focal * supersample) / depth
        seen = torch.stack([x * inverse + centre * supersample, y * inverse + centre * supersample, depth], -1)
        fragments = rasterise(seen, self.mesh.faces, size, size)
        colour = self.shade(points, fragments, frames, size, focal * supersample, centre * supersample)

        pictures = torch.stack([self.behind(frame) for frame in frames], 1)  # (3, B, S, S)
        colour = _developed(colour, self.clip.exposure)
        if supersample == 1:
            pictures.view(3, -1).index_copy_(1, fragments.pixel, colour)
        else:
            layers = colour.new_zeros(4, len(frames) * size * size)
            layers.index_copy_(1, fragments.pixel, F.pad(colour, (0, 0, 0, 1), value=1.0))
            layers = F.avg_pool2d(layers.view(4, len(frames), size, size), supersample)
            pictures = layers[:3] + pictures * (1 - layers[3])
        offsets = [self.clip.noise_offset[frame] for frame in frames]
        pictures = pictures.transpose(0, 1) + self.clip.noise * sensor_noise(offsets, self.size, self.device)
        if self.clip.hand == "left":
            pictures = pictures.flip(-1)
        return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)

    def pose(self, frames: list[int]) -> Tensor:
        """Vertices (V, B, 3) in the camera frame, metres.

        Linear blend skinning as one matrix product over bones and coordinates. In float64, so that rounding to float32
        hides the order of the sum, which may vary with the batch's size.
        """
        bones = self.to_camera[frames].permute(1, 3, 0, 2)  # (21, 4, B, 3)
        return (self.skinning @ bones.reshape(self.skinning.shape[1], -1)).float().view(-1, len(frames), 3)

    def shade(
        self, points: Tensor, fragments: Fragments, frames: list[int], size: int, focal: float, centre: float
    ) -> Tensor:
        """Linear colours (3, N) of the fragments."""
        mesh, hand_length = self.mesh, self.clip.hand_length
        frame = fragments.pixel // (size * size)
        in_frame = fragments.pixel - frame * (size * size)
        row = in_frame // size
        column = in_frame - row * size
        depth = fragments.depth
        per_metre = depth / focal
        position = torch.stack([(column + (0.5 - centre)) * per_metre, (row + (0.5 - centre)) * per_metre, depth])
        corners = mesh.faces.index_select(0, fragments.face)
        normals = vertex_normals(points, mesh.faces, mesh.faces_of_vertex).view(-1, 3)
        normal = _interpolate(normals, corners * len(frames) + frame[:, None], fragments.weights)
        attributes = _interpolate(self.surface, corners, fragments.weights)
        is_cloth = fragments.face >= mesh.num_hand_faces
        palm, redness, crease, nail = attributes[3:].unbind(0)
        surface = Surface(position, unit(normal), attributes[:3], palm, redness, crease, nail, is_cloth)

        material = surface_material(surface, self.skin, self.cloth, self.clip.texture_offset)
        lit = torch.ones_like(depth)
        if self.clip.settings.shadows:
            shadows = cast_shadows(
                points,
                mesh.faces,
                self.lights.key_direction,
                torch.tensor([0.0, 0.0, self.clip.distance], device=self.device),
                _SHADOW_RADIUS * hand_length,
                int(_SHADOW_RESOLUTION * self.size),
            )
            lit = lit_share(shadows, frame, position, material.normal)
        depth_image = depth.new_full((len(frames), size, size), 1.6 * self.clip.distance)
        depth_image.view(-1).index_copy_(0, fragments.pixel, depth)
        open_to_sky = openness(depth_image, fragments.pixel, depth, hand_length)
        return illuminate(surface, material, self.lights, lit, open_to_sky)

    def behind(self, frame: int) -> Tensor:
        """The background (3, S, S) of one frame."""
        left, top = self.clip.background_corner[frame]
        return self.background[:, top : top + self.size, left : left + self.size]


def _to(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def _interpolate(table: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Values at points inside triangles: table (V, C), corners (N, 3), weights (N, 3) -> (C, N)."""
    return F.embedding_bag(corners, table, per_sample_weights=weights, mode="sum").T.contiguous()


def _developed(light: Tensor, exposure: float) -> Tensor:
    """Linear light -> display values in 0..1: exposure, a soft shoulder for highlights, gamma 2.2."""
    exposed = light * exposure
    return (exposed / (1 + 0.18 * exposed)).clamp(0, 1) ** (1 / 2.2)
