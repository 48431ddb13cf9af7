"""Colour and filter operations on batches of images, each image with its own strength. Used by `pipeline.views`."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""

# RGB -> YIQ (NTSC). The chroma rows sum to zero, so greys have no chroma and every operation on the chroma keeps them.
_YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
_YIQ_INVERSE = torch.linalg.inv(_YIQ)


def colour_matrix(
    brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, offset: Tensor, mean_rgb: Tensor
) -> tuple[Tensor, Tensor]:
    """Brightness, contrast, saturation, hue and offset as one affine map of RGB: matrix (B, 3, 3) and shift (B, 3).

    brightness: (B,) factor. contrast: (B,) factor about the image's mean luminance. saturation: (B,) factor, 0 = grey.
    hue: (B,) turns, as a rotation of the chroma plane (1/3 takes red to green), which keeps the luminance. offset: (B,)
    added to all channels at the end.
    mean_rgb: (B, 3), mean colour of each image, in the values' unit as `offset` and the shift are. Without clipping in
    between, the order of the operations does not matter, apart from the offset. Brightness, contrast and saturation are
    torchvision's.
    """
    turn = -2 * torch.pi * hue  # in the chroma plane (I, Q) red lies clockwise after green
    zero, one = torch.zeros_like(hue), torch.ones_like(hue)
    cos, sin = saturation * torch.cos(turn), saturation * torch.sin(turn)
    in_yiq = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1).view(-1, 3, 3)
    to_yiq, to_rgb = _YIQ.to(in_yiq), _YIQ_INVERSE.to(in_yiq)
    luma = (mean_rgb * to_yiq[0]).sum(-1)
    shift = brightness * (1 - contrast) * luma + offset
    matrix = (brightness * contrast)[:, None, None] * (to_rgb @ in_yiq @ to_yiq)
    return matrix, shift[:, None].expand(-1, 3)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, C, H, W) blurred with standard deviations (B,) > 0, pixels; weights are renormalised at the border."""
    height, width = images.shape[-2:]
    down = _gaussian_rows(height, sigma)
    right = down if height == width else _gaussian_rows(width, sigma)
    # Two matrix products: one call for any mixture of widths, where a convolution would need one kernel for each image.
    return down[:, None] @ images @ right[:, None].mT


def _gaussian_rows(size: int, sigma: Tensor) -> Tensor:
    position = torch.arange(size, dtype=sigma.dtype, device=sigma.device)
    distance = (position[:, None] - position) / sigma[:, None, None]
    weights = torch.exp(-0.5 * distance**2)
    return weights / weights.sum(-1, keepdim=True)


def sobel(images: Tensor, maximum: float) -> Tensor:
    """Edges of RGB images (B, 3, H, W): |horizontal| + |vertical| 3 x 3 Sobel response of the luminance.

    The same in all channels, cut off at `maximum`.
    """
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    kernel = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    response = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return response.abs().sum(1, keepdim=True).clamp(max=maximum).expand_as(images)


def cut_out(images: Tensor, rectangles: Tensor, maximum: float) -> Tensor:
    """Images (B, C, H, W) with one rectangle each filled with grey.

    rectangles: (B, 5) = centre x, y, width, height in fractions of the side, and the grey level as a fraction of
    `maximum`.
    """
    height, width = images.shape[-2:]
    x, y, w, h, grey = (value[:, None] for value in rectangles.unbind(-1))
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    rows = (torch.arange(height, device=images.device) + 0.5) / height
    inside = ((rows - y).abs() < h / 2)[:, None, :, None] & ((columns - x).abs() < w / 2)[:, None, None, :]
    return torch.where(inside, maximum * grey[:, :, None, None], images)
