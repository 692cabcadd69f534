"""What the tests share: the repository on the path, and a tiny made-up FF++ tree."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402


def write_tiny_tree(root, qualities=("c23",), size=48, frames=3):
    """Official layout and ids, the first pair of each split: 2 real videos and 8 fakes each. A fake has one grey square more."""
    rng = np.random.default_rng(0)
    for pairs in data.FFPP_PAIRS.values():
        first, second = pairs.split()[0].split("_")
        for target, source in ((first, second), (second, first)):
            for k in range(frames):
                noise = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
                real = np.array(noise.filter(ImageFilter.GaussianBlur(1.5)))
                pictures = {f"original_sequences/youtube/{{}}/faces/{target}": real}
                for number, method in enumerate(data.METHODS):
                    fake = real.copy()
                    fake[8 + 4 * number:28 + 4 * number, 12:36] = 128
                    pictures[f"manipulated_sequences/{method}/{{}}/faces/{target}_{source}"] = fake
                for quality in qualities:
                    for folder, picture in pictures.items():
                        at = Path(root) / folder.format(quality)
                        at.mkdir(parents=True, exist_ok=True)
                        image = Image.fromarray(picture)
                        (image.filter(ImageFilter.GaussianBlur(0.5)) if quality == "c40" else image).save(at / f"{k:04d}.png")
    return Path(root)


@pytest.fixture
def tiny_tree(tmp_path):
    return write_tiny_tree(tmp_path / "ffpp")


@pytest.fixture
def sample_faces():
    """Real FF++ face crops, where they are at hand; None elsewhere. No test needs them."""
    folder = ROOT.parent / "shared" / "ffpp_sample_faces"
    return folder if folder.is_dir() else None
