"""Images, clips and whole folders for tests, good and hostile; nothing is downloaded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


def picture(
    path: Path, size: tuple[int, int] = (40, 24), colour: str = "red", caption: str | None = None
) -> None:
    """One plain image, with a caption file when a caption is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def scene(seed: int, size: tuple[int, int] = (640, 512)) -> Image.Image:
    """Ellipses with sharp edges and fine texture, other ones for every seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (int(rng.integers(0, side)) for side in size)
        radius = int(rng.integers(20, 160))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black", width=2)
    grain = rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def writing(size: tuple[int, int] = (640, 480), text: str = "OPEN ALL NIGHT") -> Image.Image:
    """A sign with letters on it."""
    image = Image.new("RGB", size, "#205080")
    ImageDraw.Draw(image).text(
        (size[0] / 2, size[1] / 2), text, fill="white", font=ImageFont.load_default(60), anchor="mm"
    )
    return image


def clip(
    path: Path,
    frames: int = 20,
    size: tuple[int, int] = (64, 48),
    fps: int = 16,
    codec: str = "mpeg4",
    step: float = 10,
) -> None:
    """A clip whose frames grow brighter, by `step` of 255 per frame, so that a frame tells its number."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        container.start_encoding()  # a clip without frames has a header, too
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), min(255, round(number * step)), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def uneven_clip(
    path: Path, times: Sequence[float], size: tuple[int, int] = (64, 48), per_second: int = 25
) -> None:
    """A clip of frames at these times in seconds, whose brightness is that of their time, 25 a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.codec_context.time_base = 4_000_000, Fraction(1, 1000)
        for time in times:
            pixels = np.full((size[1], size[0], 3), min(255, int(time * per_second)), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def moving_gif(path: Path, frames: int = 9, size: tuple[int, int] = (64, 48)) -> None:
    pictures = [Image.new("RGB", size, (n * 20, 0, 0)) for n in range(frames)]
    kind = "PNG" if path.suffix in (".png", ".apng") else None
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=62, loop=0)


def huge_png(path: Path, side: int = 30_000) -> None:
    """A valid png of side x side grey pixels that is small on disk: its rows are zeros, deflated as they are made."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze, row = zlib.compressobj(9), bytes(side // 8 + 1)
    body = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit per pixel
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


HOSTILE = {
    # file -> what its reason must say
    "truncated.jpg": "truncated",
    "zero bytes.png": r"cannot be read \(it is empty\)",
    "huge.png": r"900000000 pixels.*at most 89 million are read",
    "text renamed.png": r"cannot be read \(it is no image",
    "album of pages.tif": "holds 3 pictures",
    "latin1 caption.txt": r"not UTF-8 text \(byte 3\)",
    "no frames.mp4": "cannot be read|no frames|no picture stream",
    "one pixel.png": "1x1 pixels",
    "broken link.png": "leads nowhere",
    "loop": "is a link and was not entered",
    "bad fields.json": "is not JSON",
}


def hostile_folder(folder: Path) -> list[str]:
    """Everything that can be wrong, beside a few good files with awkward names; returns the good names."""
    folder.mkdir(parents=True, exist_ok=True)
    good = ["plain.png", "name with spaces.png", 'quote\'s "double".png', "emoji \U0001f600 \u4e2d\u6587.png"]
    for number, name in enumerate(good):
        scene(number).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"scene number {number} of a hostile folder", "utf-8")
    scene(9).save(folder / "whole.jpg", quality=92)
    data = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "zero bytes.png").touch()
    huge_png(folder / "huge.png")
    (folder / "text renamed.png").write_text("this is not an image")
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "green", "blue")]
    frames[0].save(folder / "album of pages.tif", save_all=True, append_images=frames[1:])
    scene(10).save(folder / "latin1 caption.png")
    (folder / "latin1 caption.txt").write_bytes("caf\u00e9".encode("latin-1"))
    clip(folder / "no frames.mp4", frames=0)
    Image.new("RGB", (1, 1)).save(folder / "one pixel.png")
    (folder / "broken link.png").symlink_to(folder / "broken link.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    scene(11).save(folder / "bad fields.png")
    (folder / "bad fields.json").write_text("{broken")
    return good


def mixed_quality(folder: Path) -> None:
    """A set with one of each quality problem, for reports."""
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, image: Image.Image, caption: str) -> None:
        image.save(folder / name)
        if caption:
            (folder / name).with_suffix(".txt").write_text(caption, "utf-8")

    for number in range(12):
        put(
            f"good{number}.png",
            scene(number, (768, 640)),
            f"zork, a scene of circles, view {number}, night light",
        )
    put("copy.jpg", scene(3, (768, 640)).resize((700, 583)), "zork, the same scene again, night light")
    put(
        "blurred.png",
        scene(20, (768, 640)).filter(ImageFilter.GaussianBlur(9)),
        "zork, misty shapes, night light",
    )
    put(
        "enlarged.png",
        scene(21, (240, 200)).resize((768, 640), Image.Resampling.BICUBIC),
        "zork, big dots, night light",
    )
    put("tiny.png", scene(22, (100, 80)), "zork, few pixels, night light")
    put("silent.png", scene(23, (768, 640)), "")
    put("echo.png", scene(24, (768, 640)), "zork, a scene of circles, view 1, night light")
    put("wide.png", scene(25, (1600, 240)), "zorks, a very wide view, night light")
