"""Real pictures of every format, made with Pillow."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Smooth, so that lossy formats keep it; not symmetric, so that every turn shows.
WIDTH, HEIGHT = 96, 64


def gradient(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return red rising to the right, green rising downwards, blue constant."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[..., 2] = 80
    return pixels


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as a file of some format."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF with an orientation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def plain(kind: str, **options: Any) -> bytes:
    """Return the gradient in some format."""
    return encode(Image.fromarray(gradient()), kind, **options)


def animated(kind: str, frames: int = 3) -> bytes:
    """Return an animation whose first frame is the gradient."""
    first = Image.fromarray(gradient())
    rest = [first.rotate(180 // n) for n in range(1, frames)]
    return encode(first, kind, save_all=True, append_images=rest, duration=100)


def jxl(pixels: NDArray[Any], **options: Any) -> bytes:
    """Return pixels as a JPEG XL, bare unless options say otherwise."""
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, **options))


def turned_jxl(orientation: int) -> bytes:
    """Return the gradient as a JPEG XL that is stored turned.

    No encoder at hand writes an orientation, so the metadata, which are one bit when all are
    at their defaults, are written out: bit by bit, the lowest of a number first.
    """
    plain_bits = jxl(gradient(), distance=1.0)
    size = format(int.from_bytes(plain_bits[2:4], "little"), "016b")[::-1][:9]
    turn = format(orientation - 1, "03b")[::-1]
    no_size_preview_animation, eight_bits, narrow, no_extra = "000", "000", "1", "00"
    colour, tone, no_extensions, transform = "11", "1", "00", "1"
    bits = size + "01" + turn + no_size_preview_animation + eight_bits + narrow + no_extra
    bits += colour + tone + no_extensions + transform
    packed = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    # The frame begins at the next whole byte: the fifth of the file.
    return plain_bits[:2] + packed + plain_bits[4:]


def samples() -> dict[str, bytes]:
    """Return one small file of each kind the headers and the decoder know."""
    colour = Image.fromarray(gradient())
    deep = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    return {
        "jpeg": plain("JPEG", quality=92),
        "jpeg progressive": plain("JPEG", progressive=True),
        "jpeg exif": plain("JPEG", exif=exif(6)),
        "jpeg grey": encode(colour.convert("L"), "JPEG"),
        "jpeg cmyk": encode(colour.convert("CMYK"), "JPEG"),
        "png": plain("PNG"),
        "png exif": plain("PNG", exif=exif(8)),
        "png palette": encode(colour.quantize(16), "PNG", transparency=0),
        "png rgba": encode(colour.convert("RGBA"), "PNG"),
        "png grey16": encode(Image.fromarray(deep), "PNG"),
        "png animated": animated("PNG"),
        "gif": plain("GIF"),
        "gif animated": animated("GIF"),
        "webp": plain("WEBP"),
        "webp lossless": plain("WEBP", lossless=True),
        "webp exif": plain("WEBP", exif=exif(5)),
        "webp animated": animated("WEBP"),
        "tiff": plain("TIFF"),
        "tiff lzw": plain("TIFF", compression="tiff_lzw"),
        "tiff turned": plain("TIFF", tiffinfo={0x0112: 6}),
        "bmp": plain("BMP"),
        "avif": plain("AVIF"),
        "avif exif": plain("AVIF", exif=exif(7)),
        "avif animated": animated("AVIF"),
        "jxl": jxl(gradient(), distance=1.0),
        "jxl lossless": jxl(gradient(), lossless=True),
        "jxl contained": jxl(gradient(), lossless=True, usecontainer=True),
        "jxl turned": turned_jxl(6),
        "1x1": encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
    }
