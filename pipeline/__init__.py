"""Equihand: equivariant contrastive pretraining on hand video, and 3D hand pose estimation from it."""

__version__ = "0.1.0"
