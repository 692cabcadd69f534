"""masks.py beside Sec. III-E, Fig. 3 and Table VII: what masks mark, and what is left on disk."""

import multiprocessing
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from conftest import write_tiny_tree
from PIL import Image

import data
import masks


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def grey(crop):
    """Luma as Pillow has it: 0.299 R + 0.587 G + 0.114 B, in whole levels. (H, W) float64."""
    luma = np.asarray(Image.fromarray(crop).convert("L"), np.float64)
    assert np.abs(luma - crop @ (0.299, 0.587, 0.114)).max() < 1.01
    return luma


def listed(root, quality="c23"):
    """The videos of all splits."""
    return [video for split in data.SPLITS
            for video in data.list_videos("ff++", root, quality, split)]


def masks_under(root):
    """{path below root: bytes} of all masks, without hidden files."""
    found = sorted(root.glob("manipulated_sequences/*/masks_*/*/[!.]*.png"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


# ---------------------------------------------------------------- Sec. III-E: SSIM mask, Fig. 3
def test_ssim_map_is_255_times_one_minus_ssim_of_a_7_by_7_window():
    """[40] by hand at three pixels: sample (n - 1) variances, C1 = (0.01 L)^2, C2 = (0.03 L)^2."""
    real = 60 + noise(1) // 8
    fake = 66 + noise(2) // 16                  # of little contrast, so that C1 and C2 matter
    got = masks.ssim_map(real, fake)
    c1 = (0.01 * 255) ** 2
    c2 = (0.03 * 255) ** 2
    for y, x in ((10, 12), (16, 16), (20, 7)):
        window = np.s_[y - 3:y + 4, x - 3:x + 4]
        a = grey(real)[window].ravel()
        b = grey(fake)[window].ravel()
        covariance = ((a - a.mean()) * (b - b.mean())).sum() / 48
        means = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        shapes = (2 * covariance + c2) / (a.var(ddof=1) + b.var(ddof=1) + c2)
        assert got[y, x] == pytest.approx(255 * (1 - means * shapes), abs=0.05)


def test_a_changed_square_is_marked_and_what_is_far_from_it_is_not():
    """Fig. 3: the rim has at most the window's 3 pixels, and a map above 255 is not cast to uint8.

    The square is inverted, so SSIM is negative in it.
    """
    real = noise(3, 64)
    fake = real.copy()
    fake[20:40, 20:40] = 255 - fake[20:40, 20:40]
    assert masks.ssim_map(real, fake)[23:37, 23:37].max() > 255 + 20
    mask = masks.ssim_mask(real, fake)
    assert mask[22:38, 22:38].all()
    mask[17:43, 17:43] = 0
    assert not mask.any()


def test_the_threshold_is_20_grey_levels(monkeypatch):
    """Sec. III-E: "The threshold is empirically set to 20". A pixel at it is untouched."""
    real = noise(5, 64)
    fade = np.linspace(0, 0.5, 64)[None, :, None]               # from untouched to half as bright
    fake = np.round(real * (1 - fade)).astype(np.uint8)
    change = masks.ssim_map(real, fake)
    assert change.min() < 10 and change.max() > 40
    assert np.array_equal(masks.ssim_mask(real, fake) == 1, change > 20)
    assert np.array_equal(masks.ssim_mask(real, fake, threshold=35) == 1, change > 35)
    change = np.array([[19.5, 20, 20.5]], np.float32)
    monkeypatch.setattr(masks, "ssim_map", lambda real, fake: change)
    assert masks.ssim_mask(None, None).tolist() == [[0, 0, 1]]


# ---------------------------------------------------------------- Table VII: DIFF mask
def test_diff_mask_marks_grey_differences_above_a_tenth():
    """Dang et al. [10]: |real - fake| / 255 > 0.1, that is 26 grey levels or more."""
    real = np.full((8, 8, 3), 100, np.uint8)
    fake = real.copy()
    for place, level in enumerate((125, 126, 75, 74)):          # + 25, + 26, - 25, - 26
        fake[place, place] = level
    expected = np.zeros((8, 8), np.uint8)
    expected[[1, 3], [1, 3]] = 1
    assert np.array_equal(masks.diff_mask(real, fake), expected)


# ---------------------------------------------------------------- real FF++ crops
@pytest.mark.parametrize("method, id, share", [
    ("Deepfakes", "519_515", 0.20),
    ("FaceSwap", "634_660", 0.19),
])
def test_masks_of_real_pairs_cover_what_was_measured_on_them(sample_faces, method, id, share):
    """READING Sec. III-E: masks from c23 mark a fifth of the crop, and DIFF masks far less."""
    if sample_faces is None:
        pytest.skip("FF++ is licensed and not here")
    folder = sample_faces / "manipulated_sequences" / method / "c23/faces" / id
    areas = {"ssim": [], "diff": []}
    for frame in sorted(folder.iterdir()):
        real = np.asarray(data.read_image(data.twin_path(frame)))
        fake = np.asarray(data.read_image(frame))
        for mask in areas:
            areas[mask].append(masks.MASKS[mask](real, fake).mean())
    assert np.mean(areas["ssim"]) == pytest.approx(share, abs=0.02)
    assert np.mean(areas["diff"]) < 0.6 * np.mean(areas["ssim"])


# ---------------------------------------------------------------- the masks of a whole tree
def call_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["masks.py", *map(str, arguments)])
    masks.main()


@pytest.mark.parametrize("kind", ["ssim", "diff"])
def test_every_fake_gets_masks_once_and_reals_get_none(tiny_tree, monkeypatch, capsys, kind):
    """Sec. III-E: a real frame's mask is all zeros and never stored, and white is manipulated."""
    for path in tiny_tree.glob("manipulated_sequences/*/c23/faces/071_054/0001.png"):
        fake = Image.open(path)
        fake.paste("white", (12, 8, 36, 28))    # more than a tenth of the range, for DIFF
        fake.save(path)
    call_main(monkeypatch, "--root", tiny_tree, "--mask", kind)
    assert "the masks of 24 fake videos are in " in capsys.readouterr().out
    assert len(masks_under(tiny_tree)) == 24 * 3                # 3 frames each
    assert len(list(tiny_tree.rglob("masks_*"))) == 4           # one folder for each method
    real = np.asarray(Image.open(tiny_tree / "original_sequences/youtube/c23/faces/071/0001.png"))
    for method in data.METHODS:
        folder = tiny_tree / "manipulated_sequences" / method
        fake = np.asarray(Image.open(folder / "c23/faces/071_054/0001.png"))
        mask = np.asarray(Image.open(folder / f"masks_{kind}/071_054/0001.png"))
        assert np.array_equal(mask, 255 * masks.MASKS[kind](real, fake))
        assert 0.1 < (mask == 255).mean() < 0.5


def test_masks_come_from_the_best_quality_and_serve_all(tmp_path, capsys):
    """READING Sec. III-E: c40 is not taken beside c23, although it has more frames here."""
    tree = write_tiny_tree(tmp_path, ("c23", "c40"))
    for folder in tree.glob("manipulated_sequences/*/c23/faces/*"):
        (folder / "0002.png").unlink()
    masks.write_masks(listed(tree, "c40"), "ssim", 1)
    assert "warning: " not in capsys.readouterr().out
    for video in listed(tree, "c40"):
        has_mask = [mask is not None for mask in video.masks]
        assert has_mask == [video.label, video.label, False]    # of frame 2, c23 has no pair
    frame = tree / "manipulated_sequences/Deepfakes/c23/faces/071_054/0000.png"
    pair = [np.asarray(Image.open(path)) for path in (data.twin_path(frame), frame)]
    mask = tree / "manipulated_sequences/Deepfakes/masks_ssim/071_054/0000.png"
    assert np.array_equal(np.asarray(Image.open(mask)), 255 * masks.ssim_mask(*pair))


def test_both_frames_of_a_pair_are_of_one_quality(tmp_path):
    """READING Sec. III-E: a fake in c0 whose real video is only there in c23 is compared in c23."""
    tree = write_tiny_tree(tmp_path, ("c0", "c23"))
    reals = tree / "original_sequences/youtube"
    (reals / "c0").rename(reals / "raw")                        # another name of c0
    for folder in ("raw/faces/071", "raw/faces/953", "c23/faces/953"):
        shutil.rmtree(reals / folder)
    folder = tree / "manipulated_sequences/FaceSwap"
    (folder / "c0/faces/974_953/0002.png").unlink()             # c23 has one more pair
    fakes = [video for video in listed(tree, "c0") if video.label]
    found = {video.id: masks.best_pair(video) for video in fakes if video.method == "FaceSwap"}
    assert found["974_953"][2] == "c23"
    assert found["071_054"][:3] == (folder / "c23/faces/071_054", reals / "c23/faces/071", "c23")
    assert found["054_071"][:3] == (folder / "c0/faces/054_071", reals / "raw/faces/054", "c0")
    assert found["953_974"] is None                             # its real video is nowhere
    masks.write_masks(fakes, "ssim", 2)
    assert len(masks_under(tree)) == (24 - 4) * 3


def test_what_cannot_be_done_is_named_after_all_else_is_written(tiny_tree):
    """A fake that is longer than its real video is no error, and has masks as far as that goes."""
    methods = tiny_tree / "manipulated_sequences"
    folder = methods / "FaceSwap/c23/faces/071_054"
    shutil.copy(folder / "0002.png", folder / "0003.png")       # the real video has no frame 3
    (folder / "0001.png").write_bytes(b"not a picture")
    larger = methods / "Deepfakes/c23/faces/974_953/0000.png"
    Image.open(larger).resize((64, 64)).save(larger)
    with pytest.raises(SystemExit) as stop:
        masks.write_masks(listed(tiny_tree), "ssim", 2)
    first, second = sorted(stop.value.code.splitlines())
    assert first.startswith(f"no mask for {larger}: ") and "use one box for both" in first
    assert second.startswith(f"no mask for {folder / '0001.png'}: ") and "cannot be read" in second
    assert len(masks_under(tiny_tree)) == 72 - 2
    assert data.names(methods / "FaceSwap/masks_ssim/071_054", ".png") == ["0000.png", "0002.png"]


def test_masks_from_c40_stop_the_program_when_a_better_quality_is_there(tmp_path, capsys):
    """READING Sec. III-E: quality.txt beside the masks says from which quality they were made."""
    tree = write_tiny_tree(tmp_path, ("c40",))
    masks.write_masks(listed(tree, "c40"), "ssim", 1)
    assert "warning: the masks of 24 videos are made from c40" in capsys.readouterr().out
    poor = masks_under(tree)
    write_tiny_tree(tmp_path, ("c23",))
    with pytest.raises(SystemExit) as stop:
        masks.write_masks(listed(tree), "ssim", 1)
    lines = stop.value.code.splitlines()
    assert len(lines) == 24
    for line in lines:
        assert "were made from c40, but there is c23 now" in line
        assert "delete the folder and run again" in line
        shutil.rmtree(line.split(" were made")[0].removeprefix("the masks in "))
    assert masks_under(tree) == {}
    masks.write_masks(listed(tree), "ssim", 1)
    assert masks_under(tree).keys() == poor.keys() and masks_under(tree) != poor


def write_and_die(videos):
    """Writes masks, and is killed when the 22nd file is written but has no name yet."""
    replace = os.replace
    written = []

    def replace_or_die(part, path):
        if len(written) == 21:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        replace(part, path)
    data.os.replace = replace_or_die
    for video in videos:
        masks.write_pair_masks(masks.best_pair(video), "ssim")


def test_a_second_run_writes_what_a_killed_one_has_left_out(tiny_tree, tmp_path):
    """A mask has its name when it is whole, and a mask that is there is kept."""
    tree = shutil.copytree(tiny_tree, tmp_path / "tree")
    masks.write_masks(listed(tiny_tree), "ssim", 1)
    expected = masks_under(tiny_tree)
    fakes = [video for video in listed(tree) if video.label]
    child = multiprocessing.get_context("fork").Process(target=write_and_die, args=(fakes,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = masks_under(tree)
    assert len(found) == 15                     # and quality.txt of six videos
    assert found.items() <= expected.items()
    kept = tree / min(found)
    Image.new("L", (48, 48), 255).save(kept)
    expected[min(found)] = kept.read_bytes()
    masks.write_masks(listed(tree), "ssim", 2)
    assert masks_under(tree) == expected


@pytest.mark.parametrize("missing", ["", "manipulated_sequences", "original_sequences"])
def test_without_pairs_of_fake_and_real_a_sentence_says_so(tiny_tree, monkeypatch, missing):
    shutil.rmtree(tiny_tree / missing)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "--root", tiny_tree)
    assert f"no crops of a fake video and of its real video under {tiny_tree}" in stop.value.code
