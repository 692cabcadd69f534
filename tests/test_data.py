"""data.py beside Sec. IV-A: which videos there are, what a draw holds, what damaged input leads to; the demo is no giveaway."""

import io
import multiprocessing
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_tree
from PIL import Image

import data
import masks


# ---------------------------------------------------------------- Sec. IV-A1: splits and keys
def test_the_official_split_has_720_140_140_videos_and_nobody_twice():
    ids = {split: [id for pair in pairs.split() for id in pair.split("_")] for split, pairs in data.FFPP_PAIRS.items()}
    assert {split: len(names) for split, names in ids.items()} == {"train": 720, "val": 140, "test": 140}
    assert len(set(sum(ids.values(), []))) == 1000
    assert "519" in ids["train"] and "634" in ids["test"]
    demo = [id for pairs in data.DEMO_PAIRS.values() for pair in pairs.split() for id in pair.split("_")]
    assert len(demo) == len(set(demo)) == 68


def test_a_video_is_keyed_by_data_set_method_and_id_and_knows_its_twin(tiny_tree):
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    assert len(videos) == len({video.key for video in videos}) == 10
    assert len({video.id for video in videos if video.label}) == 2          # names alone would merge four methods
    for video in videos:
        assert (video.label == 1) == ("_" in video.id) == (video.method != "real") == bool(video.twin)
        assert list(video.frames) == [0, 1, 2]
        if video.label:                                                      # <target>_<source>: the twin is the target
            assert next(iter(video.twin.values())).parent.name == video.id.split("_")[0]


def crops(folder, frames=2, size=32, names="{:04d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size if isinstance(size, tuple) else (size, size)
    for k in range(frames):
        picture = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / names.format(k))
    return folder


@pytest.mark.parametrize("quality, real, fake, names", [
    ("c0", "original_sequences/youtube/raw/faces", "manipulated_sequences/Deepfakes/raw/faces", "{:04d}.png"),
    ("c0", "original_sequences/c0/faces", "manipulated_sequences/Deepfakes/c0/faces", "frame_{:03d}.jpg"),
    ("c23", "original_sequences/c23/frames", "manipulated_sequences/Deepfakes/c23/frames", "{:03d}.png"),
    ("c40", "original_sequences/youtube/c40/frames", "manipulated_sequences/Deepfakes/c40/faces", "{}.JPEG"),
])
def test_every_name_that_people_have_is_found(tmp_path, quality, real, fake, names):
    crops(tmp_path / real / "071", names=names)
    crops(tmp_path / fake / "071_054", names="{:05d}.png")                   # frames pair by number, not by spelling
    videos = data.require_videos("ff++", tmp_path, quality, "train")
    assert [video.key for video in videos] == [("ff++", "real", "071"), ("ff++", "Deepfakes", "071_054")]
    assert list(videos[0].frames) == list(videos[1].frames) == [0, 1] == list(videos[1].twin)


def test_a_benchmarks_own_masks_serve_every_quality(tmp_path):
    """frames/ of square crops with masks/ beside them in c23 only: --mask given finds them for c40 too; white is manipulated."""
    for quality in ("c23", "c40"):
        crops(tmp_path / f"original_sequences/youtube/{quality}/frames/071")
        crops(tmp_path / f"manipulated_sequences/FaceSwap/{quality}/frames/071_054", names="{:03d}.png")
    folder = tmp_path / "manipulated_sequences/FaceSwap/c23/masks/071_054"
    folder.mkdir(parents=True)
    for name, grey in (("000.png", 255), ("001.png", 100)):
        Image.new("L", (32, 32), grey).save(folder / name)
    videos = data.list_videos("ff++", tmp_path, "c40", "train", "given")
    assert [len(video.masks) for video in videos] == [0, 2]
    assert data.read_mask(videos[1].masks[0], 16).all() and not data.read_mask(videos[1].masks[1], 16).any()
    crops(tmp_path / "manipulated_sequences/FaceSwap/c40/faces/071_054")      # our crops are of another box than the given masks
    for mask, folder in (("given", "frames"), ("ssim", "faces")):
        assert data.list_videos("ff++", tmp_path, "c40", "train", mask)[1].frames[0].parts[-3] == folder


def test_full_frames_are_never_trained_on(tmp_path, capsys):
    crops(tmp_path / "original_sequences/youtube/c23/frames/071", size=(64, 36))
    with pytest.raises(SystemExit) as stop:
        data.require_videos("ff++", tmp_path, "c23", "train")
    sentence = capsys.readouterr().err
    assert stop.value.code == 2 and "holds full frames" in sentence and "data.py faces" in sentence
    (job,) = data.face_jobs("ff++", tmp_path, ["c23"], None, 299, "lbp")     # ... and data.py faces cuts them as it cuts videos
    assert job.source == tmp_path / "original_sequences/youtube/c23/frames/071" and job.frames == 30
    assert job.outputs == [(job.source, tmp_path / "original_sequences/youtube/c23/faces/071")]
    crops(tmp_path / "original_sequences/youtube/c23/faces/071")
    crops(tmp_path / "manipulated_sequences/Deepfakes/c23/frames/071_054", size=(64, 36))    # every method is looked at
    crops(tmp_path / "manipulated_sequences/FaceSwap/c23/faces/071_054")
    with pytest.raises(SystemExit):
        data.require_videos("ff++", tmp_path, "c23", "train")
    assert "Deepfakes/c23/frames/071_054 holds full frames" in capsys.readouterr().err


def test_jobs_share_one_box_video_of_the_best_quality_and_30_or_100_frames(tmp_path):
    def video(path):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for quality in ("raw", "c40"):
        video(f"original_sequences/youtube/{quality}/videos/071.mp4")
        video(f"manipulated_sequences/Deepfakes/{quality}/videos/071_054.mp4")
    video("manipulated_sequences/FaceSwap/c40/videos/953_974.mp4")           # test split, twin not downloaded
    first, second = data.face_jobs("ff++", tmp_path, ["c0", "c40"], None, 299, "centerface")
    assert first.source == tmp_path / "original_sequences/youtube/raw/videos/071.mp4" and first.frames == 30
    assert [str(folder.relative_to(tmp_path)) for _, folder in first.outputs] == [
        "original_sequences/youtube/raw/faces/071", "manipulated_sequences/Deepfakes/raw/faces/071_054",
        "original_sequences/youtube/c40/faces/071", "manipulated_sequences/Deepfakes/c40/faces/071_054"]
    assert second.source.name == "953_974.mp4" and second.frames == 100 and len(second.outputs) == 1
    (again,) = data.face_jobs("ff++", tmp_path, ["c0"], None, 299, "centerface")
    assert again.boxes == first.boxes and len(again.outputs) == 2           # a quality at a time, the same boxes


@pytest.mark.parametrize("level", ["faces", "frames"])
@pytest.mark.parametrize("capitals", [str, str.lower])
def test_celeb_df_by_its_official_list_where_1_means_real(tmp_path, level, capitals):
    for name in ("Celeb-real/{}/id0_0000", "YouTube-real/{}/00170", "Celeb-synthesis/{}/id0_id1_0000", "Celeb-real/{}/id5_0001"):
        crops(tmp_path / capitals(name.format(level)))
    (tmp_path / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4")
    (tmp_path / capitals(f"Celeb-real/{level}/.DS_Store")).touch()
    videos = data.require_videos("celeb-df-v2", tmp_path, "c23", "test")
    assert {video.key[1:]: video.label for video in videos} == {
        ("Celeb-real", "id0_0000"): 0, ("YouTube-real", "00170"): 0, ("Celeb-synthesis", "id0_id1_0000"): 1}
    assert videos[-1].twin == videos[0].frames                               # id<A>_id<B>_<n> was made from id<A>_<n>
    assert [video.id for video in data.list_videos("celeb-df-v2", tmp_path, "c23", "train")] == ["id5_0001"]
    assert data.list_videos("celeb-df-v2", tmp_path, "c23", "val") == []
    assert data.check("celeb-df-v2", tmp_path, "c23", workers=1)


def test_celeb_df_videos_with_and_without_the_videos_level_become_jobs(tmp_path):
    for path in ("Celeb-real/videos/id0_0000.mp4", "Celeb-synthesis/id0_id1_0000.mp4", "YouTube-real/00170.mp4"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "List_of_testing_videos.txt").write_text("1 YouTube-real/00170.mp4\n")
    jobs = {job.name: job for job in data.face_jobs("celeb-df-v1", tmp_path, ["c23"], None, 299, "lbp")}
    assert {name: (len(job.outputs), job.frames) for name, job in jobs.items()} == {
        "Celeb-real/id0_0000": (2, 30), "YouTube-real/00170": (1, 100)}
    assert jobs["Celeb-real/id0_0000"].outputs[1][1] == tmp_path / "Celeb-synthesis/faces/id0_id1_0000"
    (tmp_path / "List_of_testing_videos.txt").write_text("0 Celeb-synthesis/id0_id1_0000.mp4\n")    # its twin stays in train
    fake = data.face_jobs("celeb-df-v1", tmp_path, ["c23"], None, 299, "lbp")[-1]
    assert (fake.frames, fake.source.name) == (100, "id0_0000.mp4")


@pytest.mark.parametrize("text, part", [(None, "List_of_testing_videos.txt"), ("0 YouTube-real/00170.mp4", "1 should mean real")])
def test_a_missing_or_turned_round_celeb_list_is_said(tmp_path, capsys, text, part):
    crops(tmp_path / "YouTube-real/faces/00170")
    if text:
        (tmp_path / "List_of_testing_videos.txt").write_text(text)
    with pytest.raises(SystemExit):
        data.list_videos("celeb-df-v2", tmp_path, "c23", "test")
    assert part in capsys.readouterr().err


# ---------------------------------------------------------------- pictures from disk
def test_every_mode_becomes_upright_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))            # (32, 32), left dark, right bright
    image = Image.fromarray(grey)
    for mode in ("L", "RGBA", "P", "LA", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
    image.convert("RGB").convert("CMYK").save(tmp_path / "CMYK.jpg", quality=100)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    for path in tmp_path.iterdir():
        read = np.asarray(data.read_image(path)).astype(int)
        assert read.shape == (32, 32, 3)
        if path.stem != "1":
            assert np.abs(read - grey[..., None]).max() <= 6, path.name       # 16 bit: divided, not clipped
    exif = Image.Exif()
    exif[0x0112] = 6                                                          # turn by 90 degrees clockwise to see it upright
    image.convert("RGB").save(tmp_path / "turned.jpg", exif=exif, quality=100)
    turned = np.asarray(data.read_image(tmp_path / "turned.jpg")).astype(int)
    assert np.abs(turned[..., 0] - np.rot90(grey, -1)).max() <= 6


def damaged(kind, path):
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture, "PNG")
    if kind == "huge":
        Image.new("1", (20000, 20000)).save(path)
    elif kind == "1 x 1":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "maker", 6
        block = bytearray(exif.tobytes())
        block[17] = 41                                           # the maker's name is of type 41, which there is not
        Image.new("RGB", (32, 32)).save(path, "JPEG", exif=bytes(block))
    else:
        path.write_bytes({"truncated": picture.getvalue()[:2000], "empty": b"", "text": b"I am a text"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "1 x 1", "huge", "missing", "exif"])
def test_a_damaged_picture_is_one_sentence(tmp_path, kind):
    path = tmp_path / "0000.png"
    if kind != "missing":
        damaged(kind, path)
    with pytest.raises(ValueError, match="cannot be read as a picture") as error:
        data.read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: degradations
def smooth(size=64):
    y, x = np.mgrid[:size, :size] / size
    return Image.fromarray(np.stack([255 * x, 255 * y, 127 + 100 * np.sin(9 * x * y)], 2).astype(np.uint8))


def test_jpeg_resize_and_blur_against_another_computation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=30)
    assert np.array_equal(data.jpeg(image, 30), np.asarray(Image.open(file)))
    small = torch.nn.functional.interpolate(data.to_tensor(image)[None].float(), (30, 30), mode="bilinear", antialias=True)
    back = torch.nn.functional.interpolate(small.round(), (60, 60), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(data.resize(image, 0.5)).astype(float) - back).max() <= 2
    point = np.zeros((299, 299, 3), np.uint8)
    point[149, 149] = 255
    spread = np.asarray(data.blur(Image.fromarray(point), 1.0))[..., 0].astype(float)
    y, x = np.mgrid[-149:150, -149:150]
    assert (spread * x ** 2).sum() / spread.sum() == pytest.approx(1, abs=0.25)      # variance = sigma^2 = 1 px^2
    small = np.asarray(data.blur(Image.fromarray(point[100:200, 100:200]), 1.0))
    assert small.max() > spread.max()                                         # a third of the size: sigma 1/3


def test_each_operation_comes_half_of_the_time_in_every_order_within_its_range(monkeypatch):
    """Sec. IV-A3: "with a probability of 50% in random order"."""
    calls = []
    for name in ("jpeg", "resize", "blur"):
        monkeypatch.setattr(data, name, lambda image, value, name=name: calls[-1].append((name, float(value))) or image)
    rng, image = np.random.default_rng(0), smooth()
    for _ in range(2000):
        calls.append([])
        data.degrade(image, rng)
    for name, low, high in (("jpeg", 10, 99), ("resize", 100 / 299, 199 / 299), ("blur", 0.1, 1.0)):
        values = [value for call in calls for n, value in call if n == name]
        assert 0.46 < len(values) / 2000 < 0.54
        assert low <= min(values) < low + 0.03 * (high - low) and high - 0.03 * (high - low) < max(values) <= high
    orders = {tuple(n for n, _ in call) for call in calls}
    assert len(orders) == 16                                                  # 1 + 3 + 6 + 6: every subset in every order


def test_the_clean_image_stays_what_is_on_disk(tiny_tree):
    """Sec. IV-F: the first branch gets the original "without data augmentation"; the release's in-place blur leaks into it."""
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    pairs = data.TrainingPairs(videos, 48)
    on_disk = {data.to_tensor(data.read_image(path)).numpy().tobytes() for video in videos for path in video.frames.values()}
    items = [pairs[n] for n in range(60)]
    assert all(item["clean"].numpy().tobytes() in on_disk for item in items)
    assert 0.6 < np.mean([not torch.equal(item["clean"], item["degraded"]) for item in items]) <= 1      # 7 of 8 expected
    image = smooth()
    before = image.tobytes()
    for seed in range(20):
        data.degrade(image, np.random.default_rng(seed))
    assert image.tobytes() == before


# ---------------------------------------------------------------- Sec. IV-A3: draws
def same(a, b):
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_a_draw_is_a_function_of_seed_and_number_whatever_the_workers(tiny_tree):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    alone = [data.TrainingPairs(videos, 48, seed=3)[n] for n in (21, 5, 20)]          # any order, a new object each time
    loader = torch.utils.data.DataLoader(data.TrainingPairs(videos, 48, seed=3), batch_sampler=[[20, 21], [5]], num_workers=2)
    (first, second) = list(loader)
    assert torch.equal(first["clean"], torch.stack([alone[2]["clean"], alone[0]["clean"]]))
    assert torch.equal(first["degraded"][1], alone[0]["degraded"]) and torch.equal(second["mask"][0], alone[1]["mask"])
    other = data.TrainingPairs(videos, 48, seed=4)
    assert not all(same(other[n], item) for n, item in zip((21, 5, 20), alone))


def test_an_epoch_lists_each_fake_once_and_each_real_as_often_as_there_are_methods(tiny_tree):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    pairs = data.TrainingPairs(videos, 48)
    for epoch in (0, 7):
        drawn = [pairs.draw(n)[0] for n in range(epoch * 16, epoch * 16 + 16)]
        assert len(pairs) == 16 and sorted(drawn.count(video) for video in videos) == [1] * 8 + [4] * 2
        assert all(drawn.count(video) == 4 for video in videos if not video.label)
    assert [pairs.draw(n)[0].key for n in range(16)] != [pairs.draw(n)[0].key for n in range(16, 32)]
    five = data.TrainingPairs(videos, 48, num_classes=5)
    assert sorted(five[n]["label"] for n in range(10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]       # Fig. 5: equal shares
    for n in range(16):
        item, video = pairs[n], pairs.draw(n)[0]
        assert item["label"] == video.label and item["mask"].any() == bool(video.label)


def test_crop_and_flip_are_shared_by_both_branches_and_the_mask():
    """--augment: where the mask is white the picture is white, before and after."""
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[8:20, 24:36] = 1
    picture = (mask * 255).expand(3, -1, -1)
    flipped = set()
    for seed in range(12):
        clean, degraded, moved = data.crop_and_flip(picture, picture, mask, np.random.default_rng(seed))
        assert torch.equal(clean, degraded) and clean.shape == (3, 40, 40)
        assert ((clean[0] > 127) != moved.bool()).float().mean() < 0.04
        flipped.add(bool(moved[:, :20].sum() > moved[:, 20:].sum()))
    assert flipped == {True, False}


def test_an_unreadable_frame_is_replaced_by_another_of_its_video_and_named(tiny_tree):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    for kind, frame in (("truncated", 0), ("text", 1)):
        damaged(kind, videos[0].frames[frame])
    pairs = data.TrainingPairs([videos[0], videos[-1]], 48)
    drawn = [pairs[n] for n in range(12) if pairs.draw(n)[0].key == videos[0].key]
    good = data.to_tensor(data.read_image(videos[0].frames[2]))
    assert all(torch.equal(item["clean"], good) for item in drawn)
    assert any("cannot be read" in item["unreadable"] for item in drawn)
    damaged("empty", videos[0].frames[2])
    with pytest.raises(ValueError, match="no frame of ff\\+\\+/real/054 can be read"):
        [pairs[n] for n in range(2)]


# ---------------------------------------------------------------- data.py check
@pytest.fixture
def check(monkeypatch, capsys):
    """data.py check on a tree -> its exit status, and all that it says."""
    def run(root, *flags):
        monkeypatch.setattr(sys, "argv", ["data.py", "check", "--data", "ff++", "--workers", "1", "--root", str(root), *flags])
        try:
            data.main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, "".join(capsys.readouterr())
    return run


def test_check_names_what_is_missing_broken_misplaced_or_leaked(tiny_tree, check):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    code, text = check(tiny_tree)
    assert code == 0 and "training can start" in text and "line up" not in text and "cannot be read" not in text
    assert "718 of 720 real videos without frames" in text
    base = tiny_tree / "manipulated_sequences"
    damaged("truncated", base / "Deepfakes/c23/faces/071_054/0001.png")
    (base / "Face2Face/masks_ssim/054_071/0002.png").unlink()
    for frame in (base / "FaceSwap/c23/faces/071_054").iterdir():             # cut by another box: everything is displaced
        Image.fromarray(np.roll(np.asarray(Image.open(frame)), 11, (0, 1))).save(frame)
    shutil.rmtree(tiny_tree / "original_sequences/youtube/c23/faces/953")     # a test twin
    reals = tiny_tree / "original_sequences/youtube/c23/faces"
    (reals / "974/0002.png").unlink()
    shutil.copy(reals / "071/0000.png", reals / "974")
    code, text = check(tiny_tree)
    assert code == 0
    assert re.search(r"1 pictures that cannot be read: .*071_054/0001.png", text)
    assert "1 fakes without all their masks (python masks.py writes them): Face2Face/054_071" in text
    assert re.search(r"1 fakes that do not line up .*: FaceSwap/071_054", text)
    assert re.search(r"1 videos with fewer frames than others \(3\): real/974", text)
    assert "4 fakes without their real twin" in text
    assert "real/974 (train)" in text
    for path in base.glob("*/c23/faces/[05]*/*.png"):                         # now all of the training split
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    assert check(tiny_tree)[0] == 2


def test_check_refuses_a_tree_that_training_cannot_start_on(tiny_tree, tmp_path, check):
    shutil.rmtree(tiny_tree / "original_sequences")
    code, text = check(tiny_tree)
    assert code == 2 and "not fit: the train split needs real videos" in text
    crops(tiny_tree / "original_sequences/youtube/c23/frames/071", size=(64, 36))
    code, text = check(tiny_tree)
    assert code == 2 and "holds full frames" in text
    code, text = check(tmp_path / "nowhere")
    assert code == 2 and str(tmp_path / "nowhere") in text


def test_a_tree_cut_in_two_ways_is_named_in_a_warning(tiny_tree, capsys):
    for folder, detector in (("original_sequences/youtube", "lbp"), ("manipulated_sequences/Deepfakes", "centerface")):
        (tiny_tree / folder / "c23/faces/crop_rule.json").write_text(f'{{"detector": "{detector}", "frames": [30]}}')
    data.require_videos("ff++", tiny_tree, "c23", "train")
    assert "warning" in capsys.readouterr().out


def test_videos_without_crops_are_pointed_to_the_command_that_cuts_them(tmp_path, capsys):
    path = tmp_path / "original_sequences/youtube/c23/videos/071.mp4"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(SystemExit):
        data.require_videos("ff++", tmp_path, "c23", "train")
    assert "not cut yet: python data.py faces" in capsys.readouterr().err


# ---------------------------------------------------------------- the demo
@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "tree"
    data.write_demo(root)
    return root


def test_a_demo_is_drawn_once_however_many_runs_start_at_once(tmp_path, monkeypatch, capsys):
    """The second waits for the first, and finds its demo; a folder that holds something else is left alone."""
    monkeypatch.setattr(data, "DEMO_PAIRS", {"train": "000_001"})
    monkeypatch.setattr(data, "DEMO_FRAMES", {"train": 2})
    both = [multiprocessing.get_context("fork").Process(target=data.write_demo, args=(tmp_path / "demo", 64), daemon=False) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and len(list((tmp_path / "demo").glob("**/*.*"))) == 2 * 5 * 2 * 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("all of it")
    with pytest.raises(SystemExit):
        data.write_demo(tmp_path / "other")
    assert "holds no demo" in capsys.readouterr().err and (tmp_path / "other/thesis.txt").exists()


def test_the_demo_has_the_same_bytes_whoever_draws_it(demo, tmp_path):
    data.write_demo_person((tmp_path, data.DEMO_SIZE, 1, "003", "002", 10))
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 * 3 * 10 and all((tmp_path / path).read_bytes() == (demo / path).read_bytes() for path in files)


def test_demo_fakes_leave_what_they_do_not_forge_bit_identical(demo):
    for video in data.list_videos("demo", demo, "c0", "test"):
        if video.label:
            real, fake = (np.asarray(Image.open(files[0])).astype(int) for files in (video.twin, video.frames))
            changed = (real != fake).any(2)
            assert 0.03 < changed.mean() < 0.45 and not changed[:8].any() and not changed[:, :8].any(), video.key


def features(path):
    """Colour means, standard deviations, two measures of sharpness: nothing that knows where in the frame anything is."""
    rgb = np.asarray(Image.open(path), dtype=np.float64)
    grey = rgb @ (0.299, 0.587, 0.114)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    gradient = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return np.concatenate([rgb.mean((0, 1)), rgb.std((0, 1)), [np.log(laplacian.var() + 1), np.log(gradient)]])


@pytest.mark.parametrize("quality", data.QUALITIES)
def test_the_demo_is_no_giveaway(demo, quality):
    """A logistic regression on whole-frame statistics, fitted on training people, stays under 0.70 frame AUC on test people."""
    from evaluate import auc
    sets = []
    for split in ("train", "test"):
        videos = data.list_videos("demo", demo, quality, split)
        sets.append((np.array([features(path) for video in videos for path in video.frames.values()]),
                     np.array([video.label for video in videos for _ in video.frames])))
    (x, y), (x_test, y_test) = sets
    mean, std = x.mean(0), x.std(0)
    x, x_test = (np.c_[np.ones(len(a)), (a - mean) / std] for a in (x, x_test))
    weight, w = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean())), np.zeros(x.shape[1])     # both classes count alike
    for _ in range(30):                                                       # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        hessian = x.T @ (x * (weight * p * (1 - p))[:, None]) + 1e-3 * np.eye(len(w))
        w -= np.linalg.solve(hessian, x.T @ (weight * (p - y)) + 1e-3 * w)
    score = auc(y_test, x_test @ w)
    print(f"\ndemo {quality}: whole-frame statistics: {score:.3f} frame AUC on test people, {auc(y, x @ w):.3f} on the others")
    assert auc(y, x @ w) > 0.5 and score < 0.70                               # it does learn what little there is
