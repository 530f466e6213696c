"""Images as people have them: of all sizes, upright or on their side, in several formats, one of them broken."""

import io

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
GROUPS = r"^(g\d+)_"


def picture(random, fake):
    """Noise around a colour; fake ones have stripes."""
    height, width = random.integers(20, 301, 2)
    pixels = random.integers(40, 216, 3) + random.normal(0, 25, (height, width, 3))
    if fake:
        pixels += 30 * np.sin(np.arange(width) * random.uniform(0.5, 1.5))[None, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def generate(folder, seed=0, num_train=160, num_validation=150):
    """Train|Validation/Real|Fake/gGROUP_NUMBER.*: one real in five, three images a group, one of each split broken."""
    random = np.random.default_rng(seed)
    for split, number in (("Train", num_train), ("Validation", num_validation)):
        for i in range(number):
            label = "Fake" if i % 5 else "Real"
            data = io.BytesIO()
            kind = ("JPEG", "JPEG", "PNG", "WEBP")[random.integers(4)]
            image = picture(random, label == "Fake")
            exif = image.getexif()
            exif[ORIENTATION] = int(random.integers(1, 9))
            image.save(data, kind, quality=90, exif=exif)
            path = folder / split / label / f"g{i // 15:03d}_{i:04d}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8\xff broken" if i == 7 else data.getvalue())
