"""Draws the frames of a clip."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.frames.synthetic.appearance import Cloth, Lights, Skin
from pipeline.frames.synthetic.bodies import Body
from pipeline.frames.synthetic.clip import Clip
from pipeline.frames.synthetic.imaging import longest_shift, smear, take, through_jpeg
from pipeline.frames.synthetic.mesh import vertex_normals
from pipeline.frames.synthetic.noise import sensor_noise
from pipeline.frames.synthetic.occlusion import ShadowMap, cast_shadows, lit_share, openness
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
    scene = _Scene(clip, device)
    batches = [chosen[start : start + frames_at_once] for start in range(0, len(chosen), frames_at_once)]
    return torch.cat([scene.draw(batch) for batch in batches])


class _Drawn:
    """A body on the device that draws it."""

    def __init__(self, body: Body, device: torch.device) -> None:
        mesh = body.mesh
        self.faces, self.faces_of_vertex = mesh.faces.to(device), mesh.faces_of_vertex.to(device)
        self.num_skin_faces, self.texture_offset = mesh.num_hand_faces, body.texture_offset
        self.skin = Skin._make(_to(value, device) for value in body.skin)
        self.cloth = Cloth._make(_to(value, device) for value in body.cloth)
        self.to_camera = body.to_camera.to(device)
        self.shift = None if body.shift is None else body.shift.to(device)
        rest = body.rest_vertices.to(device)
        homogeneous = F.pad(rest, (0, 1), value=1.0).double()
        self.skinning = (mesh.skin_weights.to(device).double()[:, :, None] * homogeneous[:, None]).flatten(1)
        self.surface = mesh.surface.to(device, copy=True)
        self.surface[mesh.num_hand_vertices :, :3] = rest[mesh.num_hand_vertices :]

    def pose(self, frames: list[int]) -> Tensor:
        """Vertices (V, B, 3) in the camera frame, metres, at the moments of the frames."""
        return self._skinned(self.to_camera[frames])

    def pose_later(self, frames: list[int]) -> Tensor | None:
        """Vertices (V, B, 3) when the shutter closes, if it had opened at the moments of the frames; None = motionless."""
        return None if self.shift is None else self._skinned(self.to_camera[frames] + self.shift[frames])

    def _skinned(self, bones: Tensor) -> Tensor:
        """Bones (B, J, 3, 4) -> vertices (V, B, 3).

        Linear blend skinning as one matrix product over bones and coordinates. In float64, so that rounding to float32
        hides the order of the sum, which may vary with the batch's size.
        """
        columns = bones.permute(1, 3, 0, 2).reshape(self.skinning.shape[1], -1)  # (J * 4, B * 3)
        return (self.skinning @ columns).float().view(-1, len(bones), 3)


class _Scene:
    """What is computed once for all frames of a clip."""

    def __init__(self, clip: Clip, device: torch.device) -> None:
        self.clip, self.device = clip, device
        self.size = clip.settings.image_size
        self.bodies = [_Drawn(body, device) for body in clip.bodies]
        self.is_blurred = any(body.shift is not None for body in clip.bodies)
        self.lights = Lights(*(value.to(device) for value in clip.lights))
        self.exposure = clip.exposure.to(device)
        supersample = clip.settings.supersample
        self.focal = float(clip.scene_camera[0, 0]) * supersample
        self.centre = float(clip.scene_camera[0, 2]) * supersample
        brightness = self.lights.ambient_colour.mean() + 0.35 * self.lights.key_colour.mean()
        self.background = _developed(clip.background.to(device) * brightness, self.exposure)

    def draw(self, frames: list[int]) -> Tensor:
        """uint8 (B, 3, S, S)."""
        clip, supersample = self.clip, self.clip.settings.supersample
        size = self.size * supersample
        posed = [body.pose(frames) for body in self.bodies]
        seen = [self.project(points) for points in posed]
        fragments = [rasterise(points, body.faces, size, size) for points, body in zip(seen, self.bodies, strict=True)]
        depth_image = posed[0].new_full((len(frames), size, size), 1.6 * clip.distance)
        if len(fragments) == 1:
            depth_image.view(-1).index_copy_(0, fragments[0].pixel, fragments[0].depth)
        else:
            fragments = _in_front(fragments, depth_image)
        shadows = self.shadows(posed)
        colours = [
            _developed(self.shade(body, points, shown, frames, size, depth_image, shadows), self.exposure)
            for body, points, shown in zip(self.bodies, posed, fragments, strict=True)
        ]
        pixel, colour = torch.cat([shown.pixel for shown in fragments]), torch.cat(colours, 1)

        pictures = torch.stack([self.behind(frame) for frame in frames], 1)  # (3, B, S, S)
        if supersample == 1 and not self.is_blurred:
            pictures.view(3, -1).index_copy_(1, pixel, colour)
        else:
            if self.is_blurred:
                shift = torch.cat(
                    [self.motion(*each, frames) for each in zip(self.bodies, seen, fragments, strict=True)], 1
                )
                layers = smear(pixel, colour, shift, size, len(frames))
            else:
                layers = colour.new_zeros(4, len(frames) * size * size)
                layers.index_copy_(1, pixel, F.pad(colour, (0, 0, 0, 1), value=1.0))
            layers = layers.view(4, len(frames), size, size)
            if supersample > 1:
                layers = F.avg_pool2d(layers, supersample)
            pictures = layers[:3] + pictures * (1 - layers[3])
        offsets = [clip.noise_offset[frame] for frame in frames]
        pictures = take(pictures.transpose(0, 1), clip.imaging, sensor_noise(offsets, self.size, self.device))
        if clip.hand == "left":
            pictures = pictures.flip(-1)
        pictures = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
        quality = clip.imaging.jpeg_quality
        return pictures if quality is None else through_jpeg(pictures, quality)

    def project(self, points: Tensor) -> Tensor:
        """Points (V, B, 3) in the camera frame -> pixels (supersampled) and depth."""
        x, y, depth = points.unbind(-1)
        inverse = self.focal / depth
        return torch.stack([x * inverse + self.centre, y * inverse + self.centre, depth], -1)

    def shadows(self, posed: list[Tensor]) -> ShadowMap | None:
        """What the key light reaches, of all bodies together."""
        if not self.clip.settings.shadows:
            return None
        maps = [
            cast_shadows(
                points,
                body.faces,
                self.lights.key_direction,
                torch.tensor([0.0, 0.0, self.clip.distance], device=self.device),
                _SHADOW_RADIUS * self.clip.hand_length,
                int(_SHADOW_RESOLUTION * self.size),
            )
            for body, points in zip(self.bodies, posed, strict=True)
        ]
        depth = reduce(torch.minimum, [shadows.depth for shadows in maps])
        return maps[0]._replace(depth=depth)

    def shade(
        self,
        body: _Drawn,
        points: Tensor,
        fragments: Fragments,
        frames: list[int],
        size: int,
        depth_image: Tensor,
        shadows: ShadowMap | None,
    ) -> Tensor:
        """Linear colours (3, N) of a body's fragments; depth_image (B, size, size) of all bodies."""
        hand_length = self.clip.hand_length
        frame = fragments.pixel // (size * size)
        in_frame = fragments.pixel - frame * (size * size)
        row = in_frame // size
        column = in_frame - row * size
        depth = fragments.depth
        per_metre = depth / self.focal
        half = 0.5 - self.centre
        position = torch.stack([(column + half) * per_metre, (row + half) * per_metre, depth])
        corners = body.faces.index_select(0, fragments.face)
        normals = vertex_normals(points, body.faces, body.faces_of_vertex).view(-1, 3)
        normal = _interpolate(normals, corners * len(frames) + frame[:, None], fragments.weights)
        attributes = _interpolate(body.surface, corners, fragments.weights)
        is_cloth = fragments.face >= body.num_skin_faces
        palm, redness, crease, nail = attributes[3:].unbind(0)
        surface = Surface(position, unit(normal), attributes[:3], palm, redness, crease, nail, is_cloth)

        material = surface_material(surface, body.skin, body.cloth, body.texture_offset)
        lit = torch.ones_like(depth) if shadows is None else lit_share(shadows, frame, position, material.normal)
        open_to_sky = openness(depth_image, fragments.pixel, depth, hand_length)
        return illuminate(surface, material, self.lights, lit, open_to_sky)

    def motion(self, body: _Drawn, seen: Tensor, fragments: Fragments, frames: list[int]) -> Tensor:
        """Pixels (2, N) by which each fragment moves while the shutter is open."""
        later = body.pose_later(frames)
        if later is None:
            return seen.new_zeros(2, len(fragments.pixel))
        moved = (self.project(later) - seen)[..., :2]
        longest = longest_shift(self.size) * self.clip.settings.supersample
        moved = moved * (longest / moved.norm(dim=-1, keepdim=True).clamp_min(longest))
        num_frames = len(frames)
        frame = torch.div(fragments.pixel, self.size**2 * self.clip.settings.supersample**2, rounding_mode="floor")
        corners = body.faces.index_select(0, fragments.face)
        return _interpolate(moved.reshape(-1, 2), corners * num_frames + frame[:, None], fragments.weights)

    def behind(self, frame: int) -> Tensor:
        """The background (3, S, S) of one frame."""
        left, top = self.clip.background_corner[frame]
        return self.background[:, top : top + self.size, left : left + self.size]


def _in_front(fragments: list[Fragments], depth_image: Tensor) -> list[Fragments]:
    """Of several bodies' fragments, those that no other body hides; their depth goes to depth_image (B, S, S)."""
    nearest = torch.full_like(depth_image, torch.inf).view(-1)
    for shown in fragments:
        nearest[shown.pixel] = torch.minimum(nearest[shown.pixel], shown.depth)
    is_covered = nearest.isfinite()
    depth_image.view(-1)[is_covered] = nearest[is_covered]
    visible = [shown.depth <= nearest[shown.pixel] for shown in fragments]
    return [Fragments(*(values[kept] for values in shown)) for shown, kept in zip(fragments, visible, strict=True)]


def _to(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def _interpolate(table: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Values at points inside triangles: table (V, C), corners (N, 3), weights (N, 3) -> (C, N)."""
    return F.embedding_bag(corners, table, per_sample_weights=weights, mode="sum").T.contiguous()


def _developed(light: Tensor, exposure: Tensor) -> Tensor:
    """Linear light (3, ...) -> display values in 0..1: exposure (3,), a soft shoulder for highlights, gamma 2.2."""
    exposed = light * exposure.view(3, *[1] * (light.dim() - 1))
    return (exposed / (1 + 0.18 * exposed)).clamp(0, 1) ** (1 / 2.2)
