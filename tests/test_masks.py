"""masks.py beside Sec. III-E, Fig. 3 and Table VII: what masks mark, and what is left on disk."""

import shutil
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


def grey(crop):
    """Luma as Pillow has it: 0.299 R + 0.587 G + 0.114 B, in whole levels. (H, W) float64."""
    luma = np.asarray(Image.fromarray(crop).convert("L"), np.float64)
    assert np.abs(luma - crop @ (0.299, 0.587, 0.114)).max() < 1.01
    return luma


def masks_under(root):
    """{path below root: bytes} of all masks, without hidden files."""
    found = sorted(root.glob("manipulated_sequences/*/masks_*/*/[!.]*.png"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


# ---------------------------------------------------------------- Sec. III-E: SSIM mask, Fig. 3
def test_identical_crops_give_an_empty_mask():
    """Sec. III-E: SSIM is 1 where frames agree, so 255 (1 - SSIM) is 0 and nothing is marked."""
    crop = noise(0)
    for make in (masks.ssim_mask, masks.diff_mask):
        mask = make(crop, crop)
        assert mask.shape == (32, 32) and mask.dtype == np.uint8
        assert not mask.any()
    assert not masks.ssim_map(crop, crop).any()


def test_ssim_map_is_255_times_one_minus_ssim_of_a_7_by_7_window():
    """[40] by hand at three pixels: sample (n - 1) variances, C1 = (0.01 L)^2, C2 = (0.03 L)^2.

    Of little contrast, so that the constants weigh.
    """
    real = 60 + noise(1) // 8
    fake = 66 + noise(2) // 16
    got = masks.ssim_map(real, fake)
    assert got.shape == (32, 32)
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
    """Fig. 3: the mask covers what was manipulated, with a rim of the window's 3 pixels at most."""
    real = noise(3, 64)
    fake = real.copy()
    fake[20:40, 20:40] = 255 - fake[20:40, 20:40]
    mask = masks.ssim_mask(real, fake)
    assert mask[22:38, 22:38].all()
    mask[17:43, 17:43] = 0
    assert not mask.any()


def test_negative_ssim_is_marked_although_the_map_passes_255():
    """An inverted picture has SSIM < 0: a cast to uint8 before the comparison would wrap around."""
    real = noise(4)
    fake = 255 - real
    middle = np.s_[8:24, 8:24]
    assert masks.ssim_map(real, fake)[middle].max() > 255 + 20
    assert masks.ssim_mask(real, fake)[middle].all()


def test_the_threshold_is_20_grey_levels():
    """Sec. III-E: "The threshold is empirically set to 20", of the map times 255."""
    real = noise(5, 64)
    fade = np.linspace(0, 0.5, 64)[None, :, None]               # from untouched to half as bright
    fake = np.round(real * (1 - fade)).astype(np.uint8)
    change = masks.ssim_map(real, fake)
    assert change.min() < 10 and change.max() > 40
    assert np.array_equal(masks.ssim_mask(real, fake) == 1, change > 20)
    assert np.array_equal(masks.ssim_mask(real, fake, threshold=35) == 1, change > 35)


# ---------------------------------------------------------------- Table VII: DIFF mask
def test_diff_mask_marks_grey_differences_above_a_tenth():
    """Dang et al. [10]: |real - fake| / 255 > 0.1, that is 26 grey levels or more."""
    real = np.full((8, 8, 3), 100, np.uint8)
    fake = real.copy()
    for place, level in enumerate((125, 126, 75, 74)):          # + 25, + 26, - 25, - 26
        fake[place, place] = level
    expected = np.zeros((8, 8), np.uint8)
    expected[1, 1] = 1
    expected[3, 3] = 1
    assert np.array_equal(masks.diff_mask(real, fake), expected)


@pytest.mark.parametrize("mask", ["ssim", "diff"])
def test_crops_of_different_size_are_refused(mask):
    with pytest.raises(ValueError, match="cut both with one box"):
        masks.MASKS[mask](noise(0, 32), noise(0, 31))


# ---------------------------------------------------------------- real FF++ crops
@pytest.mark.parametrize("method, id, share", [
    ("Deepfakes", "519_515", 0.20),
    ("FaceSwap", "634_660", 0.19),
])
def test_masks_of_real_pairs_cover_what_was_measured_on_them(sample_faces, method, id, share):
    """READING Sec. III-E: a fifth of the crop from c23; DIFF (Table VII) much less of it."""
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
def test_every_fake_gets_masks_once_and_reals_get_none(tiny_tree):
    """Sec. III-E: a real frame's mask is all zeros, and never stored. White is manipulated."""
    assert masks.write_masks("ff++", tiny_tree, "ssim", 2) == 3 * 2 * 4         # fake videos
    written = masks_under(tiny_tree)
    assert len(written) == 24 * 3
    assert len(list(tiny_tree.rglob("masks_*"))) == 4           # one folder a method
    place = "manipulated_sequences/{}/{}/071_054/0001.png"
    for method in data.METHODS:
        fake = Image.open(tiny_tree / place.format(method, "c23/faces"))
        real = Image.open(tiny_tree / "original_sequences/youtube/c23/faces/071/0001.png")
        mask = np.asarray(Image.open(tiny_tree / place.format(method, "masks_ssim")))
        assert mask.dtype == np.uint8 and mask.shape == (48, 48)
        assert np.array_equal(mask, 255 * masks.ssim_mask(np.asarray(real), np.asarray(fake)))
        assert 0.1 < (mask == 255).mean() < 0.5


def test_a_second_run_writes_what_is_missing_and_keeps_what_is_there(masked_tree):
    written = masks_under(masked_tree)
    other = masked_tree / "manipulated_sequences/FaceSwap/masks_ssim/071_054/0000.png"
    Image.new("L", (48, 48), 255).save(other)
    kept = other.read_bytes()
    missing = masked_tree / "manipulated_sequences/FaceSwap/masks_ssim/071_054/0002.png"
    missing.unlink()
    assert masks.write_masks("ff++", masked_tree, "ssim", 1) == 24
    assert other.read_bytes() == kept
    written[other.relative_to(masked_tree).as_posix()] = kept
    assert masks_under(masked_tree) == written


def test_masks_come_from_the_best_quality_and_serve_all(tmp_path, capsys):
    """READING Sec. III-E: c0, else c23, else c40, whose masks are worse and warned about."""
    tree = write_tiny_tree(tmp_path / "both", ("c23", "c40"))
    assert {quality for _, quality in masks.best_pairs("ff++", tree)} == {"c23"}
    masks.write_masks("ff++", tree, "ssim", 1)
    assert "warning: " not in capsys.readouterr().out
    for video in data.list_videos("ff++", tree, "c40", "train"):
        assert data.drawable_frames(video, "ssim") == video.frames
    frame = tree / "manipulated_sequences/Deepfakes/c23/faces/071_054/0000.png"
    pair = [np.asarray(Image.open(path)) for path in (data.twin_path(frame), frame)]
    mask = np.asarray(Image.open(data.mask_path(frame, "ssim")))
    assert np.array_equal(mask, 255 * masks.ssim_mask(*pair))
    poor = write_tiny_tree(tmp_path / "poor", ("c40",))
    masks.write_masks("ff++", poor, "ssim", 1)
    assert "warning: " in capsys.readouterr().out


def test_both_frames_of_a_pair_are_of_one_quality(tmp_path):
    """READING Sec. III-E: a fake in c0 whose real video is there in c23 only is compared in c23."""
    tree = write_tiny_tree(tmp_path, ("c0", "c23"))
    shutil.rmtree(tree / "original_sequences/youtube/c0/faces/071")
    shutil.rmtree(tree / "original_sequences/youtube/c0/faces/953")
    shutil.rmtree(tree / "original_sequences/youtube/c23/faces/953")
    best = {}
    for video, quality in masks.best_pairs("ff++", tree):
        assert f"/{quality}/" in video.frames[0].as_posix()
        best[video.method, video.id] = quality
    assert best["Deepfakes", "071_054"] == "c23"
    assert best["Deepfakes", "054_071"] == "c0"
    assert ("Deepfakes", "953_974") not in best                 # its real video is nowhere
    assert len(best) == 24 - 4
    assert masks.write_masks("ff++", tree, "ssim", 2) == 20


def test_what_cannot_be_done_is_named_after_all_else_is_written(tiny_tree, capsys):
    """Design, 3. A fake that is longer than its real video is no error: it has masks as far."""
    methods = tiny_tree / "manipulated_sequences"
    folder = methods / "FaceSwap/c23/faces/071_054"
    shutil.copy(folder / "0002.png", folder / "0003.png")       # the real video has no frame 3
    (folder / "0001.png").write_bytes(b"not a picture")
    larger = methods / "Deepfakes/c23/faces/974_953/0000.png"
    Image.open(larger).resize((64, 64)).save(larger)
    with pytest.raises(SystemExit) as stop:
        masks.write_masks("ff++", tiny_tree, "ssim", 2)
    lines = capsys.readouterr().err.split("\r")[-1].splitlines()
    assert stop.value.code == 2
    assert len(lines) == 3 and lines[2].startswith("2 masks ")
    told = "\n".join(sorted(lines))
    assert f"no mask for {larger}: " in told and "cut both with one box" in told
    assert f"no mask for {folder / '0001.png'}: " in told and "cannot be read" in told
    assert len(masks_under(tiny_tree)) == 72 - 2
    made = sorted((methods / "FaceSwap/masks_ssim/071_054").glob("*.png"))
    assert [path.name for path in made] == ["0000.png", "0002.png"]


# ---------------------------------------------------------------- python masks.py
def call_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["masks.py", *map(str, arguments)])
    masks.main()


def test_the_command_writes_the_masks_that_are_asked_for(tiny_tree, monkeypatch, capsys):
    call_main(monkeypatch, "--root", tiny_tree, "--mask", "diff", "--workers", 1)
    assert "24 fake videos have masks" in capsys.readouterr().out
    folders = {path.split("/")[2] for path in masks_under(tiny_tree)}
    assert folders == {"masks_diff"} and len(masks_under(tiny_tree)) == 72


@pytest.mark.parametrize("what, part", [
    ("nothing", "github.com/ondyari/FaceForensics"),
    ("videos", "cut the videos first: python data.py faces"),
    ("real crops", "no fake video with its real video"),
    ("fake crops", "no fake video with its real video"),
])
def test_where_nothing_can_be_done_a_sentence_says_so(tiny_tree, monkeypatch, capsys, what, part):
    if what == "real crops":
        shutil.rmtree(tiny_tree / "manipulated_sequences")
    elif what == "fake crops":
        shutil.rmtree(tiny_tree / "original_sequences")
    else:
        shutil.rmtree(tiny_tree)
    if what == "videos":
        video = tiny_tree / "original_sequences/youtube/c23/videos/071.mp4"
        video.parent.mkdir(parents=True)
        video.touch()
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "--root", tiny_tree)
    said = capsys.readouterr().err.split("\r")[-1]
    assert stop.value.code == 2
    assert part in said and str(tiny_tree) in said and said.count("\n") == 1


def start_masks(root):
    command = [sys.executable, "masks.py", "--root", str(root), "--workers", "1"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_of_two_runs_at_once_one_is_killed_and_the_other_makes_every_mask(tmp_path):
    """Design, 3: a file has its name when it is whole, whoever is killed. No lock files."""
    whole = write_tiny_tree(tmp_path / "whole", frames=20)
    tree = shutil.copytree(whole, tmp_path / "tree")
    masks.write_masks("ff++", whole, "ssim", 1)
    killed = start_masks(tree)
    other = start_masks(tree)
    count = 0
    while count < 20 and None in (killed.poll(), other.poll()):
        time.sleep(0.005)
        count = len(list(tree.glob("manipulated_sequences/*/masks_ssim/*/[!.]*.png")))
    killed.kill()                               # SIGKILL
    killed.communicate()
    assert 20 <= count < 24 * 20
    errors = other.communicate()[1]
    assert other.returncode == 0, errors
    assert masks_under(tree) == masks_under(whole)
    assert len(masks_under(tree)) == 24 * 20


# ---------------------------------------------------------------- what masks were made from
def stop_of(capsys, tree):
    """What is said on standard error when masks.py cannot do all."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        masks.write_masks("ff++", tree, "ssim", 1)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_masks_from_c40_are_named_when_a_better_quality_arrives(tmp_path, capsys):
    """READING Sec. III-E: quality.txt beside the masks says what they were made from."""
    tree = write_tiny_tree(tmp_path, ("c40",))
    masks.write_masks("ff++", tree, "ssim", 1)
    assert masks.write_masks("ff++", tree, "ssim", 1) == 24
    poor = masks_under(tree)
    write_tiny_tree(tmp_path, ("c23",))
    said = stop_of(capsys, tree)
    assert said.count("was made from c40, and c23 is there now: delete it") == 24
    assert masks_under(tree) == poor
    for folder in tree.glob("manipulated_sequences/*/masks_ssim"):
        shutil.rmtree(folder)
    assert masks.write_masks("ff++", tree, "ssim", 1) == 24
    assert masks_under(tree) != poor


@pytest.mark.parametrize("damage", ["empty", "size"])
def test_a_broken_mask_is_named_and_the_others_are_kept(damage, masked_tree, capsys, monkeypatch):
    path = masked_tree / "manipulated_sequences/FaceSwap/masks_ssim/071_054/0001.png"
    if damage == "empty":
        path.write_bytes(b"")
    else:
        Image.new("L", (47, 48)).save(path)
    with pytest.raises(SystemExit) as stop:
        call_main(monkeypatch, "--root", masked_tree, "--workers", 1)
    assert stop.value.code == 2
    assert str(path) in capsys.readouterr().err
    path.unlink()
    assert masks.write_masks("ff++", masked_tree, "ssim", 1) == 24
