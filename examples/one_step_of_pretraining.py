"""The method in one page: two views of each hand, their transforms undone on the projections, NT-Xent, one optimiser step.

    python examples/one_step_of_pretraining.py FRAMES

FRAMES is a frame set (a folder or s3:// URI), such as `demo/...` or what jobs.ingest wrote.
"""

import sys

import torch

import equihand
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.projection import ProjectionHead


def main(frames: str) -> float:
    """One step; returns the loss."""
    settings = equihand.ViewSettings(size=64)
    crops = equihand.FrameSet.open(frames).load("train", limit=32).frames  # (N, 3, S, S) uint8
    first, second = (equihand.sample_views(settings, len(crops)) for _ in range(2))

    encoder = build_encoder(EncoderSettings(name="resnet18", width=32))
    project = ProjectionHead(encoder.num_features, 512, 128)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *project.parameters()], lr=1e-3)

    def latent(views: equihand.Views) -> torch.Tensor:
        projections = project(encoder(equihand.apply_views(crops, views, settings)))  # read as 64 points in the plane
        return equihand.undo_transform(projections, views.angle, views.translation)

    loss = equihand.nt_xent(latent(first), latent(second), temperature=0.5)
    loss.backward()
    optimiser.step()
    print(f"{len(crops)} hands, NT-Xent {loss.item():.3f}; chance: {torch.log(torch.tensor(2.0 * len(crops) - 1)):.3f}")
    return loss.item()


if __name__ == "__main__":
    main(sys.argv[1])
