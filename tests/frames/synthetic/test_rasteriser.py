import pytest
import torch

from pipeline.frames.synthetic.mesh import load_dressed_mesh, vertex_normals
from pipeline.frames.synthetic.rasteriser import MIN_DEPTH, depth_map, rasterise


def naive(points, faces, height, width):
    """Pixel by pixel, triangle by triangle: (face, depth, corner weights) of the nearest front face, in float64."""
    image: dict[tuple[int, int], tuple[int, float, list[float]]] = {}
    for number, face in enumerate(faces.tolist()):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = (points[vertex].double().tolist() for vertex in face)
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0 or min(az, bz, cz) <= MIN_DEPTH:
            continue
        for row in range(height):
            for column in range(width):
                x, y = column + 0.5, row + 0.5
                weights = [
                    ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area,
                    ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area,
                    ((ax - x) * (by - y) - (ay - y) * (bx - x)) / area,
                ]
                if min(weights) < 0:
                    continue
                depth = 1 / sum(w / z for w, z in zip(weights, (az, bz, cz), strict=True))
                if (row, column) not in image or depth < image[row, column][1]:
                    corrected = [w / z * depth for w, z in zip(weights, (az, bz, cz), strict=True)]
                    image[row, column] = (number, depth, corrected)
    return image


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_naive_rasteriser(seed):
    generator = torch.Generator().manual_seed(seed)
    height, width, num_frames = 13, 17, 2
    points = torch.rand(20, num_frames, 3, generator=generator) * torch.tensor([24.0, 20.0, 0.9]) - torch.tensor(
        [4.0, 4, 0]
    )
    triples = [torch.randperm(20, generator=generator)[:3] for _ in range(30)]
    faces = torch.stack(list({tuple(sorted(triple.tolist())): triple for triple in triples}.values()))
    fragments = rasterise(points, faces, height, width)
    depths = depth_map(points, faces, height, width)
    expected = {
        (frame * height + row) * width + column: value
        for frame in range(num_frames)
        for (row, column), value in naive(points[:, frame], faces, height, width).items()
    }
    assert fragments.pixel.tolist() == sorted(expected)
    found = zip(*(values.tolist() for values in fragments), strict=True)
    for pixel, face, weights, depth in found:
        assert face == expected[pixel][0]
        assert depth == pytest.approx(expected[pixel][1], rel=1e-4)
        assert weights == pytest.approx(expected[pixel][2], abs=1e-4)
        assert float(depths.view(-1)[pixel]) == pytest.approx(depth, rel=1e-6)
    assert int(depths.isfinite().sum()) == len(expected)


def test_a_closed_mesh_has_no_cracks():
    """Two triangles that share an edge cover their square completely, whichever way the edge runs."""
    square = torch.tensor([[2.3, 1.7], [13.9, 1.7], [13.9, 12.1], [2.3, 12.1]])
    points = torch.cat([square, torch.ones(4, 1)], 1)[:, None]
    for faces in ([[0, 2, 1], [0, 3, 2]], [[1, 3, 2], [1, 0, 3]]):
        depths = depth_map(points, torch.tensor(faces), 16, 16)
        assert int(depths.isfinite().sum()) == 12 * 10


def test_back_faces_are_not_drawn():
    points = torch.tensor([[1.0, 1, 1], [9, 1, 1], [1, 9, 1]])[:, None]
    assert len(rasterise(points, torch.tensor([[0, 2, 1]]), 10, 10).pixel) > 0
    assert len(rasterise(points, torch.tensor([[0, 1, 2]]), 10, 10).pixel) == 0


def test_nothing_in_view_gives_an_empty_picture():
    points = torch.tensor([[100.0, 1, 1], [120, 1, 1], [100, 9, 1]])[:, None]
    fragments = rasterise(points, torch.tensor([[0, 2, 1]]), 10, 10)
    assert len(fragments.pixel) == 0
    assert fragments.weights.shape == (0, 3)


def test_normals_of_the_dressed_hand_point_outwards():
    mesh = load_dressed_mesh()
    points = mesh.surface[: mesh.num_hand_vertices, :3]
    hand_faces = mesh.faces[: mesh.num_hand_faces]
    table = mesh.faces_of_vertex[:, : mesh.num_hand_vertices].clamp_max(mesh.num_hand_faces)
    normals = vertex_normals(points[:, None], hand_faces, table)[:, 0]
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(points)))
    expected = torch.zeros_like(points)
    corners = points[hand_faces]
    face_normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for k in range(3):
        expected.index_add_(0, hand_faces[:, k], face_normals)
    torch.testing.assert_close(normals, torch.nn.functional.normalize(expected, dim=-1), atol=1e-4, rtol=0)
