"""The small world that the tiny Wan draws: one plain shape on a plain background, 64x64 pixels.

The base model is trained on circles, squares and triangles. `CONCEPT` is a fourth shape, a plus sign with an
invented name, that it never sees: what a LoRA learns in the demo and in the tests. Because the world is this
small, plain pixel arithmetic can say what was drawn, so a test can measure "the LoRA learned it" instead of
trusting a loss curve.

    image = render("circle", "red", "white", cx=32, cy=30, radius=18)     # (64, 64, 3) uint8
    shape_of(image)    -> ("circle", 0.97)
    colour_of(image)   -> "red"

Only numpy is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SIZE = 64
"""Width and height of every image, in pixels."""

JITTER = 6.0
"""How far a shape's centre may lie from the middle, pixels."""

CONCEPT = "zorb"
"""The invented word for the shape that the base model does not know: a plus sign, arms a third of its
width."""

BASE_SHAPES = ("circle", "square", "triangle")
ALL_SHAPES = (*BASE_SHAPES, CONCEPT)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 40),
    "green": (45, 165, 65),
    "blue": (45, 85, 220),
    "yellow": (240, 205, 45),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}

MIN_CONTRAST = 60.0
"""Least RGB distance (0 to 441) between shape and background that counts as a shape."""

MIN_OVERLAP = 0.75
"""Least intersection over union with a template for a shape to count as recognised."""

MIN_LEAD = 0.06
"""How far the best template must lead the second best."""

TEMPLATE_SIZE = 32
"""Shapes are compared after their bounding box is scaled to this many pixels a side."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that decides one image."""

    shape: str
    colour: str
    background: str
    cx: float
    """Centre, pixels from the left."""
    cy: float
    """Centre, pixels from the top."""
    radius: float
    """Half the shape's extent, pixels."""

    def image(self) -> np.ndarray:  # (64, 64, 3) uint8
        return render(self.shape, self.colour, self.background, self.cx, self.cy, self.radius)

    def caption(self) -> str:
        return caption(self.shape, self.colour, self.background)


def caption(shape: str, colour: str, background: str) -> str:
    """The one sentence pattern of this world. Shape colours and background colours are different words,
    because the text encoder does not know word order."""
    return f"a {colour} {shape} on a {background} background"


def inside_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels from each point to the shape's edge, positive inside.

    Args:
        dx, dy: offsets from the shape's centre, pixels; y grows downward.
        radius: half the shape's extent, pixels.
    """
    if shape == "circle":
        return radius - np.hypot(dx, dy)
    if shape == "square":
        return radius * 0.9 - np.maximum(np.abs(dx), np.abs(dy))
    if shape == "triangle":
        # Equilateral, tip up, centred by its bounding box: base 2r wide, sqrt(3) r tall.
        half_height = radius * np.sqrt(3) / 2
        sloped = (half_height + dy) / 2 - np.abs(dx) * np.sqrt(3) / 2
        return np.minimum(half_height - dy, sloped)
    if shape == CONCEPT:
        arm = radius / 3
        upright = np.minimum(arm - np.abs(dx), radius - np.abs(dy))
        level = np.minimum(radius - np.abs(dx), arm - np.abs(dy))
        return np.maximum(upright, level)
    raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(ALL_SHAPES)}")


def render(
    shape: str, colour: str, background: str, cx: float, cy: float, radius: float
) -> np.ndarray:  # (64, 64, 3) uint8
    """Draw one antialiased shape: each pixel is mixed by how far its centre lies inside the edge."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    cover = np.clip(inside_distance(shape, columns - cx, rows - cy, radius) + 0.5, 0, 1)[..., None]
    front, back = np.array(COLOURS[colour], float), np.array(BACKGROUNDS[background], float)
    return np.rint(cover * front + (1 - cover) * back).astype(np.uint8)


def random_scene(
    rng: np.random.Generator, shapes: tuple[str, ...] = BASE_SHAPES, anywhere: bool = False
) -> Scene:
    """One scene drawn from `rng`; the shape lies near the middle, or `anywhere` that it fits whole."""
    radius = rng.uniform(14 if anywhere else 16, 21)
    reach = SIZE / 2 - radius - 3 if anywhere else JITTER
    return Scene(
        shape=str(rng.choice(shapes)),
        colour=str(rng.choice(list(COLOURS))),
        background=str(rng.choice(list(BACKGROUNDS))),
        cx=SIZE / 2 + rng.uniform(-reach, reach),
        cy=SIZE / 2 + rng.uniform(-reach, reach),
        radius=radius,
    )


def random_scenes(
    count: int, seed: int, shapes: tuple[str, ...] = BASE_SHAPES, anywhere: bool = False
) -> list[Scene]:
    """`count` scenes; the same seed gives the same scenes."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng, shapes, anywhere) for _ in range(count)]


def concept_scenes(count: int = 20, seed: int = 7) -> list[Scene]:
    """Scenes of the new shape that go through every colour and background in turn, places and sizes at
    random."""
    pairs = [(colour, background) for background in BACKGROUNDS for colour in COLOURS]
    rng = np.random.default_rng(seed)
    scenes = []
    for index in range(count):
        colour, background = pairs[index % len(pairs)]
        drawn = random_scene(rng, (CONCEPT,))
        scenes.append(
            Scene(
                shape=CONCEPT,
                colour=colour,
                background=background,
                cx=drawn.cx,
                cy=drawn.cy,
                radius=drawn.radius,
            )
        )
    return scenes


# --- the checks: what does this image show? ---------------------------------------------------------------


def foreground(image: np.ndarray) -> np.ndarray | None:  # (64, 64) bool
    """Mask of the shape, or None when there is no single clear shape on an even background.

    The background is the median of the image's rim. A pixel belongs to the shape when it is nearer to the
    shape's strongest colour than to the background, so blurry edges are cut in their middle.
    """
    pixels = image.astype(float)
    rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    rim = np.concatenate([rim, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    distance = np.linalg.norm(pixels - np.median(rim, axis=0), axis=-1)
    strongest = np.percentile(distance, 95)
    uneven = np.mean(np.linalg.norm(rim - np.median(rim, axis=0), axis=-1) > MIN_CONTRAST) > 0.1
    if uneven or strongest < MIN_CONTRAST:
        return None
    mask = distance > strongest / 2
    return mask if 0.03 < mask.mean() < 0.6 else None


def crop_to_shape(mask: np.ndarray) -> np.ndarray:  # (32, 32) bool
    """The mask's bounding box, scaled to the template size by nearest pixel.

    Rows and columns with hardly any of the shape (a stray speck) do not count for the box.
    """
    rows = np.flatnonzero(mask.sum(axis=1) >= 2)
    columns = np.flatnonzero(mask.sum(axis=0) >= 2)
    if len(rows) < 8 or len(columns) < 8:
        return np.zeros((TEMPLATE_SIZE, TEMPLATE_SIZE), bool)
    steps = (np.arange(TEMPLATE_SIZE) + 0.5) / TEMPLATE_SIZE
    picked_rows = (rows[0] + steps * (rows[-1] + 1 - rows[0])).astype(int)
    picked_columns = (columns[0] + steps * (columns[-1] + 1 - columns[0])).astype(int)
    return mask[np.ix_(picked_rows, picked_columns)]


def template(shape: str) -> np.ndarray:  # (32, 32) bool
    """What `crop_to_shape` gives for a perfectly drawn shape."""
    mask = foreground(render(shape, "red", "white", 32, 32, 24))
    assert mask is not None, "a sharp shape stands out"
    return crop_to_shape(mask)


def shape_of(image: np.ndarray) -> tuple[str, float]:
    """The best-matching shape and its intersection over union with the template (0 to 1).

    The name is "" when nothing matches well enough or two shapes match about equally.
    """
    mask = foreground(image)
    if mask is None:
        return "", 0.0
    crop = crop_to_shape(mask)
    overlaps = {}
    for shape in ALL_SHAPES:
        other = template(shape)
        overlaps[shape] = float((crop & other).sum() / max(1, (crop | other).sum()))
    best, second = sorted(overlaps, key=lambda shape: overlaps[shape], reverse=True)[:2]
    clear = overlaps[best] >= MIN_OVERLAP and overlaps[best] - overlaps[second] >= MIN_LEAD
    return (best if clear else ""), overlaps[best]


def nearest_name(value: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(value - np.array(names[name], float))))


def colour_of(image: np.ndarray) -> str:
    """Name of the colour nearest to the shape's median colour, or "" when there is no clear shape."""
    mask = foreground(image)
    return "" if mask is None else nearest_name(np.median(image[mask].astype(float), axis=0), COLOURS)


def background_of(image: np.ndarray) -> str:
    """Name of the background nearest to the median colour outside the shape, or "" when there is no clear
    shape."""
    mask = foreground(image)
    return "" if mask is None else nearest_name(np.median(image[~mask].astype(float), axis=0), BACKGROUNDS)


def share(answers: Iterable[bool]) -> float:
    """Share of true answers, 0 to 1; 0 for none at all."""
    answers = list(answers)
    return sum(answers) / max(1, len(answers))


def concept_score(images: Iterable[np.ndarray]) -> float:
    """Share of the images (each (64, 64, 3) uint8) that clearly show the new shape, 0 to 1."""
    return share(shape_of(image)[0] == CONCEPT for image in images)


def shape_accuracy(images: Iterable[np.ndarray], shapes: Iterable[str]) -> float:
    """Share of the images that clearly show the shape they should, 0 to 1."""
    return share(shape_of(image)[0] == shape for image, shape in zip(images, shapes, strict=True))


def colour_accuracy(images: Iterable[np.ndarray], colours: Iterable[str]) -> float:
    """Share of the images whose shape has the colour it should, 0 to 1."""
    return share(colour_of(image) == colour for image, colour in zip(images, colours, strict=True))
