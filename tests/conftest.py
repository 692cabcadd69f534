"""What the tests share: the scripts on the path, a tiny made-up FF++ tree, and its masks."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
import masks  # noqa: E402


def write_picture(array, quality, folder, frame):
    image = Image.fromarray(array)
    if quality == "c40":
        image = image.filter(ImageFilter.GaussianBlur(0.5))
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{frame:04d}.png")


def write_tiny_tree(root, qualities=("c23",), size=48, frames=3):
    """Official layout and ids, the first pair of each split: 2 real videos and 8 fakes each.

    A real frame is smooth noise; its fakes have one grey square more, each method a little lower.
    """
    root = Path(root)
    rng = np.random.default_rng(0)
    for pairs in data.FFPP_PAIRS.values():
        first, second = pairs.split()[0].split("_")
        for target, source in ((first, second), (second, first)):
            for frame in range(frames):
                noise = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
                real = np.array(noise.filter(ImageFilter.GaussianBlur(1.5)))
                for quality in qualities:
                    real_folder = root / "original_sequences/youtube" / quality / "faces" / target
                    write_picture(real, quality, real_folder, frame)
                    for number, method in enumerate(data.METHODS):
                        fake = real.copy()
                        fake[8 + 4 * number:28 + 4 * number, 12:36] = 128
                        method_folder = root / "manipulated_sequences" / method / quality
                        fake_folder = method_folder / "faces" / f"{target}_{source}"
                        write_picture(fake, quality, fake_folder, frame)
    return root


@pytest.fixture
def tiny_tree(tmp_path):
    return write_tiny_tree(tmp_path / "ffpp")


@pytest.fixture
def masked_tree(tiny_tree):
    """tiny_tree with the SSIM masks of its fakes."""
    for split in data.SPLITS:
        masks.write_masks(data.list_videos("ff++", tiny_tree, "c23", split), workers=1)
    return tiny_tree


@pytest.fixture
def sample_faces():
    """Real FF++ face crops, where they are at hand; None elsewhere. No test needs them."""
    folder = ROOT.parent / "shared" / "ffpp_sample_faces"
    return folder if folder.is_dir() else None
