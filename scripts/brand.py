"""Draw the icon and the banner of the pack's page in the registry: a kiln whose fire draws a falling loss curve.

python -m scripts.brand
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from scripts.host_files import REPO

IMAGES = REPO / "docs" / "images"
DARK, BRICK, FIRE, GLOW = "#1d232b", "#b5533c", "#f2a541", "#ffd98a"


def kiln(side: int) -> Image.Image:
    """The mark, drawn at four times its size and made smaller."""
    s = side * 4
    made = Image.new("RGB", (s, s), DARK)
    draw = ImageDraw.Draw(made)
    left, right, top, bottom = 0.14 * s, 0.86 * s, 0.14 * s, 0.86 * s
    draw.pieslice((left, top, right, top + (right - left)), 180, 360, fill=BRICK)
    middle = top + (right - left) / 2
    draw.rectangle((left, middle, right, bottom), fill=BRICK)
    inner = (0.28 * s, 0.30 * s, 0.72 * s, 0.74 * s)
    draw.pieslice(inner, 180, 360, fill=DARK)
    draw.rectangle((0.28 * s, 0.52 * s, 0.72 * s, bottom), fill=DARK)
    curve = []
    for i in range(101):
        x = i / 100
        loss = 0.9 * math.exp(-3.2 * x) + 0.07 * math.sin(19 * x) * math.exp(-2 * x) + 0.05
        curve.append(((0.30 + 0.40 * x) * s, (0.82 - 0.40 * loss) * s))
    draw.polygon([*curve, (0.70 * s, bottom), (0.30 * s, bottom)], fill=FIRE)
    draw.line(curve, fill=GLOW, width=round(0.022 * s), joint="curve")
    return made.resize((side, side), Image.Resampling.LANCZOS)


def main() -> None:
    kiln(400).save(IMAGES / "icon.png", optimize=True)
    banner = Image.new("RGB", (1680, 720), DARK)  # 21:9
    banner.paste(kiln(560), (70, 80))
    draw = ImageDraw.Draw(banner)
    draw.text((690, 220), "LoRA Kiln", fill="#ffffff", font=ImageFont.load_default(150))
    draw.text(
        (696, 420), "Train LoRAs inside the ComfyUI graph", fill="#b8c4d0", font=ImageFont.load_default(52)
    )
    banner.save(IMAGES / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
