"""Synthetic hand video with exact 3D joints: a skinned hand model, gestures, and a small renderer in plain PyTorch."""
