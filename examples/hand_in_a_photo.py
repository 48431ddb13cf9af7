"""The joints of a hand in a photograph, drawn on it.

    python examples/hand_in_a_photo.py photo.jpg 310 120 560 400 right out.png

The four numbers are a box around the hand, in pixels: left, top, right, bottom.
"""

import sys

from PIL import Image, ImageDraw, ImageOps

import equihand
from pipeline.drawing.skeleton import draw_skeleton


def main(photo: str, box: list[float], hand: str, output: str) -> None:
    """Predict, print, draw."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # as viewers show it
    poses = equihand.predict_hands([image], [box], hand)
    for name, (u, v), point in zip(equihand.JOINTS, poses.joints_2d[0], 1000 * poses.joints_3d[0], strict=True):
        print(f"{name:12} {u:7.1f} {v:7.1f} px   {' '.join(f'{each:7.1f}' for each in point)} mm")
    draw_skeleton(ImageDraw.Draw(image), poses.joints_2d[0], width=max(image.size) / 300)
    image.save(output)


if __name__ == "__main__":
    main(sys.argv[1], [float(each) for each in sys.argv[2:6]], sys.argv[6], sys.argv[7])
