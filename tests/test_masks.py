"""masks.py beside Sec. III-E and Fig. 3: what SSIM and DIFF masks mark, and what the command line leaves on disk."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, write_tiny_tree
from PIL import Image

import data
import masks


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_identical_crops_give_an_empty_mask():
    """Sec. III-E: SSIM is 1 where frames agree, so 255 (1 - SSIM) is 0 and nothing is marked."""
    crop = noise(0)
    assert masks.ssim_mask(crop, crop).sum() == 0 and masks.diff_mask(crop, crop).sum() == 0
    assert masks.ssim_mask(crop, crop).dtype == np.uint8


def test_ssim_map_is_255_times_one_minus_ssim_of_a_7_by_7_window():
    """[40] by hand at three interior pixels: sample (n - 1) variances, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2."""
    real, fake = noise(1), noise(2)
    got = masks.ssim_map(real, fake)
    a, b = (np.asarray(Image.fromarray(crop).convert("L"), dtype=np.float64) for crop in (real, fake))
    for y, x in ((10, 12), (16, 16), (20, 7)):
        p, q = a[y - 3:y + 4, x - 3:x + 4].ravel(), b[y - 3:y + 4, x - 3:x + 4].ravel()
        mp, mq, cov = p.mean(), q.mean(), ((p - p.mean()) * (q - q.mean())).sum() / 48
        c1, c2 = 2.55 ** 2, 7.65 ** 2
        ssim = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp ** 2 + mq ** 2 + c1) * (p.var(ddof=1) + q.var(ddof=1) + c2))
        assert got[y, x] == pytest.approx(255 * (1 - ssim), abs=0.05)


def test_a_changed_square_is_marked_and_what_is_far_from_it_is_not():
    real = noise(3, 64)
    fake = real.copy()
    fake[20:40, 20:40] = 255 - fake[20:40, 20:40]
    mask = masks.ssim_mask(real, fake)
    assert mask[22:38, 22:38].all()
    outside = np.ones((64, 64), bool)
    outside[17:43, 17:43] = False                       # the 7 x 7 window reaches 3 pixels further
    assert not mask[outside].any()


def test_negative_ssim_is_marked_although_the_map_passes_255():
    """An inverted picture has SSIM < 0, so 255 (1 - SSIM) > 255; a cast to uint8 before the comparison would wrap to small numbers."""
    real = noise(4)
    fake = 255 - real
    assert masks.ssim_map(real, fake)[8:24, 8:24].max() > 255
    assert masks.ssim_mask(real, fake)[8:24, 8:24].all()


def test_the_threshold_is_20_grey_levels_and_strict():
    real, fake = noise(5), noise(5)
    fake[12:20, 12:20] //= 2
    assert (masks.ssim_mask(real, fake) == (masks.ssim_map(real, fake) > 20)).all()
    assert masks.ssim_mask(real, fake, threshold=5).sum() > masks.ssim_mask(real, fake).sum() > masks.ssim_mask(real, fake, 200).sum()


def test_diff_mask_marks_grey_differences_above_a_tenth():
    """[10]: |real - fake| / 255 > 0.1, that is 26 grey levels or more."""
    real = np.full((8, 8, 3), 100, np.uint8)
    fake = real.copy()
    fake[0, 0], fake[1, 1], fake[2, 2] = 125, 126, 74
    expected = np.zeros((8, 8), np.uint8)
    expected[1, 1] = expected[2, 2] = 1
    assert (masks.diff_mask(real, fake) == expected).all()


@pytest.mark.parametrize("make", masks.MASKS.values())
def test_crops_of_different_size_are_refused(make):
    with pytest.raises(ValueError, match="one box"):
        make(noise(0, 32), noise(0, 31))


def test_real_c23_pairs_mark_what_was_measured_on_them(sample_faces):
    """A Deepfakes pair flags about 0.20 of the frame, a FaceSwap pair 0.19, DIFF far less; grey made-up pairs where FF++ is not at hand."""
    if sample_faces is None:
        real = noise(6, 64)
        fake = real.copy()
        fake[16:48, 16:48] = np.roll(fake[16:48, 16:48], 5, 0)      # a quarter of the frame, of the same grey values
        assert masks.ssim_mask(real, fake).mean() == pytest.approx(0.25, abs=0.12)
        return
    for method, fake_id, expected in (("Deepfakes", "519_515", 0.20), ("FaceSwap", "634_660", 0.19)):
        fakes = data.frame_files(sample_faces / "manipulated_sequences" / method / "c23/faces" / fake_id)
        reals = data.frame_files(sample_faces / "original_sequences/youtube/c23/faces" / fake_id.split("_")[0])
        pairs = [(np.asarray(data.read_image(reals[k])), np.asarray(data.read_image(fakes[k]))) for k in fakes]
        ssim = np.mean([masks.ssim_mask(*pair).mean() for pair in pairs])
        assert ssim == pytest.approx(expected, abs=0.03)
        assert np.mean([masks.diff_mask(*pair).mean() for pair in pairs]) < 0.6 * ssim


def test_every_fake_gets_masks_once_and_reals_get_none(tiny_tree):
    written, problems = masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    assert (written, problems) == (3 * 8 * 3, [])               # 3 splits, 8 fakes each, 3 frames
    assert not list(tiny_tree.glob("original_sequences/**/masks*"))
    path = tiny_tree / "manipulated_sequences/Deepfakes/masks_ssim/071_054/0001.png"
    faces = (tiny_tree / f"{top}/c23/faces/{id}/0001.png" for top, id in (("original_sequences/youtube", "071"),
                                                                         ("manipulated_sequences/Deepfakes", "071_054")))
    expected = masks.ssim_mask(*(np.asarray(Image.open(face)) for face in faces))
    assert (np.asarray(Image.open(path)) == 255 * expected).all() and expected.any()
    before = path.stat().st_mtime_ns
    assert masks.write_masks("ff++", tiny_tree, "ssim", workers=1) == (0, [])
    assert path.stat().st_mtime_ns == before


def test_masks_come_from_the_best_quality_and_serve_all(tmp_path, capsys):
    tree = write_tiny_tree(tmp_path / "both", ("c23", "c40"))
    assert {quality for _, quality in masks.best_pairs("ff++", tree, "ssim")} == {"c23"}
    masks.write_masks("ff++", tree, "ssim", workers=1)
    assert "warning" not in capsys.readouterr().out
    assert all(video.masks for video in data.list_videos("ff++", tree, "c40", "train") if video.label)
    poor = write_tiny_tree(tmp_path / "poor", ("c40",))
    masks.write_masks("ff++", poor, "ssim", workers=1)
    assert "come from c40" in capsys.readouterr().out


def test_frames_that_the_best_quality_lacks_come_from_the_next(tmp_path):
    """One frame in c0, three in c23: the mask of the first is c0's, the other two are c23's, and none is missing."""
    root = write_tiny_tree(tmp_path, ("c0", "c23"))
    for path in [*root.glob("**/c0/faces/*/0001.png"), *root.glob("**/c0/faces/*/0002.png")]:
        path.unlink()
    assert masks.write_masks("ff++", root, workers=1) == (72, []) and masks.write_masks("ff++", root, workers=1) == (0, [])
    assert all(len(video.masks) == 3 for video in data.list_videos("ff++", root, "c23", "train") if video.label)
    assert all(list(video.masks) == [0] for video in data.list_videos("ff++", root, "c0", "train") if video.label)


def test_masks_over_crops_of_another_rule_are_warned_about(tmp_path, capsys):
    root = write_tiny_tree(tmp_path, ("c0", "c23"))
    for path in root.glob("**/faces"):
        (path / "crop_rule.json").write_text(f'{{"detector": "{"lbp" if "c0" in str(path) else "centerface"}"}}')
    masks.write_masks("ff++", root, workers=1)
    assert "masks do not fit" in capsys.readouterr().out


def test_a_longer_fake_stops_where_its_twin_does_and_bad_frames_are_named(tiny_tree):
    folder = tiny_tree / "manipulated_sequences/FaceSwap/c23/faces/071_054"
    (folder / "0003.png").write_bytes((folder / "0002.png").read_bytes())        # the twin has no frame 3
    (folder / "0001.png").write_bytes(b"not a picture")
    written, problems = masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    assert written == 3 * 8 * 3 - 1 and len(problems) == 1 and "0001.png cannot be read" in problems[0]
    assert sorted(p.name for p in (tiny_tree / "manipulated_sequences/FaceSwap/masks_ssim/071_054").iterdir()) == ["0000.png", "0002.png"]


def test_the_command_line_writes_masks_and_says_where_it_looked(tiny_tree, tmp_path):
    run = [sys.executable, "masks.py", "--data", "ff++", "--workers", "1", "--mask", "diff", "--root"]
    done = subprocess.run([*run, tiny_tree], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "72 masks written" in done.stdout
    assert (tiny_tree / "manipulated_sequences/NeuralTextures/masks_diff/054_071/0000.png").exists()
    empty = subprocess.run([*run, tmp_path / "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert empty.returncode == 2 and str(tmp_path / "nowhere") in empty.stderr and "Traceback" not in empty.stderr


def test_two_runs_at_once_write_every_mask_once_and_both_end_well(tmp_path):
    one, two = (write_tiny_tree(tmp_path / name, frames=20) for name in ("one", "two"))
    masks.write_masks("ff++", one, "ssim", workers=1)
    code = "import sys, masks; masks.write_masks('ff++', sys.argv[1], 'ssim', 2)"
    both = [subprocess.Popen([sys.executable, "-c", code, str(two)], cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert {p.relative_to(one): p.read_bytes() for p in one.rglob("*.*")} == {p.relative_to(two): p.read_bytes() for p in two.rglob("*.*")}


def test_killed_at_any_moment_then_run_again_gives_the_same_tree(tmp_path):
    def tree(root):
        return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    whole, killed = (write_tiny_tree(tmp_path / name, frames=30) for name in ("whole", "killed"))
    masks.write_masks("ff++", whole, "ssim", workers=1)
    code = "import sys, masks; masks.write_masks('ff++', sys.argv[1], 'ssim', 1)"
    for enough in (20, 200):                                     # of 3 * 8 * 30
        process = subprocess.Popen([sys.executable, "-c", code, str(killed)], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        while len(list(killed.glob("manipulated_sequences/*/masks_ssim/*/*.png"))) < enough and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert enough <= len(list(killed.glob("manipulated_sequences/*/masks_ssim/*/*.png"))) < 720
    masks.write_masks("ff++", killed, "ssim", workers=1)
    assert tree(killed) == tree(whole)
