"""A folder of pictures of a user's kind: five classes of bright shapes on textures, of any hue, size, place and angle."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "cross", "ring", "square", "triangle")
FINER = 4  # times the side at which a picture is drawn


def draw_texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Soft spots, stripes and grain, darker than every shape."""
    spots = rng.integers(0, 256, (*(int(rng.integers(3, 9)),) * 2, 3), dtype=np.uint8)
    colours = np.asarray(Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    angle, places = rng.uniform(0, np.pi), np.arange(side)
    waves = np.sin((places[:, None] * np.cos(angle) + places * np.sin(angle)) * rng.uniform(0.05, 0.3))
    grain = rng.normal(0, 8, (side, side, 1))
    return Image.fromarray(np.clip(0.55 * colours + 25 * waves[..., None] + grain, 0, 255).astype(np.uint8))


def draw_picture(name: str, rng: np.random.Generator, side: int) -> Image.Image:
    """One shape of the class `name` on a texture."""
    image = draw_texture(rng, FINER * side)
    radius = FINER * side * rng.uniform(0.18, 0.34)
    x, y = rng.uniform(radius, FINER * side - radius, 2)
    hue = rng.uniform(170, 256, 3)
    hue[rng.integers(3)] = rng.uniform(60, 256)
    turn, colour = rng.uniform(0, 2 * np.pi), (int(hue[0]), int(hue[1]), int(hue[2]))
    brush, box = ImageDraw.Draw(image), (x - radius, y - radius, x + radius, y + radius)

    def corner(share: float) -> tuple[float, float]:
        angle = turn + 2 * np.pi * share
        return x + radius * float(np.cos(angle)), y + radius * float(np.sin(angle))

    if name == "circle":
        brush.ellipse(box, fill=colour)
    elif name == "ring":
        brush.ellipse(box, outline=colour, width=int(0.35 * radius))
    elif name == "cross":
        for share in (0.0, 0.25):
            brush.line((*corner(share), *corner(share + 0.5)), fill=colour, width=int(0.45 * radius))
    else:
        corners = 4 if name == "square" else 3
        brush.polygon([corner(number / corners) for number in range(corners)], fill=colour)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def make(root: Path, labelled: int = 10, unlabelled: int = 300, test: int = 60, side: int = 40, seed: int = 0) -> Path:
    """labelled/ and test/ of so many pictures a class, and unlabelled/ of so many in all."""
    rng = np.random.default_rng(seed)
    for part, count in (("labelled", labelled), ("test", test)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                draw_picture(name, rng, side).save(root / part / name / f"{number:03d}.png")
    (root / "unlabelled").mkdir()
    for number in range(unlabelled):
        draw_picture(CLASSES[int(rng.integers(5))], rng, side).save(root / "unlabelled" / f"{number:03d}.png")
    return root
