"""data.py beside Sec. IV-A: which videos there are, what a draw holds, what is said of faults.

data.py faces has a file of its own, test_faces.py.
"""

import hashlib
import io
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import data
import masks

YOUTUBE = "original_sequences/youtube"
REAL = f"{YOUTUBE}/c23/faces"
FACESWAP = "manipulated_sequences/FaceSwap"
CELEB_LIST = ("1 YouTube-real/00170.mp4\n"
              "1 Celeb-real/id0_0000.mp4\n"
              "0 Celeb-synthesis/id0_id1_0000.mp4\n")


def noise(seed=0, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_crops(folder, frames=2, seed=0):
    """A made-up video: pictures of noise, folder/0000.png and so on. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(frames):
        Image.fromarray(noise(seed + index)).save(folder / f"{index:04d}.png")
    return folder


def write_damaged(path, kind):
    """A file that read_face refuses."""
    if kind == "truncated":
        Image.fromarray(noise()).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_bytes(b"I am a text")
    elif kind == "16 bit":
        Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(path)
    elif kind == "59 x 71":
        Image.fromarray(noise(0, 71, 59)).save(path)


def stopped(function, *arguments):
    """The sentence with which a call ends the program. Its exit status is then 1."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert isinstance(stop.value.code, str)
    return stop.value.code


# ---------------------------------------------------------------- Sec. IV-A1: the official split
def test_the_split_is_the_published_one():
    """Sec. IV-A1: 720, 140 and 140 videos. Fingerprints are of FF++'s train, val, test.json."""
    fingerprints = {"train": "823e8589bdf922db", "val": "9b5e1014da59c196",
                    "test": "75162fcc0eac28c5"}
    for split, fingerprint in fingerprints.items():
        text = " ".join(data.FFPP_PAIRS[split].split())
        assert hashlib.sha256(text.encode()).hexdigest().startswith(fingerprint)
    splits = data.official_split("ff++", "nowhere")
    for method in ("real", "Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"):
        found = [split for (name, _), split in splits.items() if name == method]
        assert len(found) == 1000
        assert [found.count(split) for split in ("train", "val", "test")] == [720, 140, 140]
    for (method, id), split in splits.items():          # nobody is seen in two splits
        assert all(splits["real", person] == split for person in id.split("_"))
    assert splits["Deepfakes", "071_054"] == splits["Deepfakes", "054_071"] == "train"
    assert ("Deepfakes", "071_087") not in splits


def test_celeb_df_is_tested_by_its_official_list_where_1_means_real(tmp_path):
    """Celeb-DF has no masks: a folder that could be taken for FF++'s masks is not used."""
    for name in ("Celeb-real/faces/id0_0000", "Celeb-real/faces/id5_0001",
                 "YouTube-real/faces/00170", "Celeb-synthesis/faces/id0_id1_0000",
                 "masks_ssim/id0_id1_0000"):
        write_crops(tmp_path / name)
    path = tmp_path / "List_of_testing_videos.txt"
    path.write_bytes(CELEB_LIST.replace("\n", "\r\n").encode())
    videos = data.require_videos("celeb-df-v2", tmp_path, "c23", "test")
    assert [video.key for video in videos] == [
        ("celeb-df-v2", "Celeb-real", "id0_0000"),              # id5_0001 is not on the list
        ("celeb-df-v2", "YouTube-real", "00170"),
        ("celeb-df-v2", "Celeb-synthesis", "id0_id1_0000")]
    assert [video.label for video in videos] == [0, 0, 1]
    assert all(video.masks == [None, None] for video in videos)
    assert data.list_videos("celeb-df-v2", tmp_path, "c23", "train") == []
    assert data.list_videos("celeb-df-v2", tmp_path, None, "test", "given") == videos
    path.unlink()
    assert f"no {path}" in stopped(data.list_videos, "celeb-df-v2", tmp_path, "c23", "test")


# ---------------------------------------------------------------- Sec. IV-A1: the videos
def test_the_path_is_the_database():
    """A fake frame, the real frame that it was made from and its mask have one file name."""
    method = Path("FF/manipulated_sequences/Deepfakes")
    frame = method / "c40/faces/000_003/0012.png"
    assert data.twin_path(frame) == Path("FF") / YOUTUBE / "c40/faces/000/0012.png"
    assert data.mask_folder(frame.parent, "ssim") == method / "masks_ssim/000_003"
    assert data.mask_folder(frame.parent, "diff") == method / "masks_diff/000_003"
    assert data.mask_folder(frame.parent, "given") == method / "c23/masks/000_003"


def test_a_video_is_known_by_data_set_method_and_id(tiny_tree):
    """Ids repeat in the four methods. The label does not depend on having a twin."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    expected = [("ff++", "real", "054"), ("ff++", "real", "071")]
    for method in ("Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"):
        expected += [("ff++", method, "054_071"), ("ff++", method, "071_054")]
    assert [video.key for video in videos] == expected
    for video in videos:
        assert video.label == (0 if video.method == "real" else 1)
        assert [frame.name for frame in video.frames] == ["0000.png", "0001.png", "0002.png"]
        assert {frame.parent.name for frame in video.frames} == {video.id}
        assert video.masks == [None, None, None]                # none is made yet
    shutil.rmtree(tiny_tree / REAL)
    alone = data.list_videos("ff++", tiny_tree, "c23", "train")
    assert [(video.key, video.label) for video in alone] == [(key, 1) for key in expected[2:]]


def test_only_png_folders_of_the_split_are_videos(tmp_path):
    """Hidden files, half-written folders, other pictures and unknown ids are not listed."""
    write_crops(tmp_path / REAL / "071")
    (tmp_path / REAL / "071" / ".0002.png").touch()             # macOS leaves such files behind
    (tmp_path / REAL / "071" / "0002.jpg").touch()
    write_crops(tmp_path / REAL / ".054.part")
    write_crops(tmp_path / REAL / "stranger")
    (tmp_path / REAL / "054").mkdir()
    (tmp_path / REAL / "087").touch()
    videos = data.list_videos("ff++", tmp_path, "c23", "train")
    assert [video.id for video in videos] == ["071"]
    assert [frame.name for frame in videos[0].frames] == ["0000.png", "0001.png"]


@pytest.mark.parametrize("of_real, of_fake", [("c0", "raw"), ("raw", "c0"), ("raw", "raw")])
def test_raw_and_c0_are_one_quality_in_every_folder(tmp_path, of_real, of_fake):
    """FF++'s download calls c0 raw. The masks of such a pair are made from it and are used."""
    real_folder = write_crops(tmp_path / YOUTUBE / of_real / "faces/071")
    fake_folder = write_crops(tmp_path / FACESWAP / of_fake / "faces/071_054", seed=5)
    real, fake = data.list_videos("ff++", tmp_path, "c0", "train")
    assert real.frames == [real_folder / "0000.png", real_folder / "0001.png"]
    assert fake.frames == [fake_folder / "0000.png", fake_folder / "0001.png"]
    assert [data.twin_path(frame) for frame in fake.frames] == real.frames
    masks.write_masks([real, fake], "ssim", 1)
    fake = data.list_videos("ff++", tmp_path, "c0", "train")[1]
    assert fake.masks == [tmp_path / FACESWAP / "masks_ssim/071_054" / name
                          for name in ("0000.png", "0001.png")]
    item = data.TestFrames([fake], 32)[1]
    assert np.array_equal(item["mask"], masks.ssim_mask(noise(1), noise(6)))
    assert item["mask"].any()


def test_a_benchmarks_crops_and_masks_belong_together(tmp_path):
    """frames/ has masks/ beside it, or uses c23's. Our faces/ are cut by another box."""
    method = tmp_path / FACESWAP
    for quality in ("c23", "c40"):
        write_crops(tmp_path / YOUTUBE / quality / "frames/071")
        write_crops(method / quality / "frames/071_054")

    def listed(mask):
        return data.list_videos("ff++", tmp_path, "c40", "train", mask)[-1]
    assert listed("given").masks == [None, None]
    folder = write_crops(method / "c23/masks/071_054")
    assert listed("given").masks == [folder / "0000.png", folder / "0001.png"]
    folder = write_crops(method / "c40/masks/071_054", frames=1)
    assert listed("given").masks == [folder / "0000.png", None]
    assert listed("ssim").frames[0].parts[-3] == "frames"
    write_crops(method / "c40/faces/071_054")
    for mask, kind in (("given", "frames"), ("ssim", "faces"), ("diff", "faces")):
        assert listed(mask).frames[0].parts[-3] == kind


def test_one_kind_of_crops_is_read_where_only_reals_are_in_both(masked_tree, check):
    """Reals cut by our box beside fakes cut by another box could be told apart by the cut."""
    for folder in list(masked_tree.glob("*_sequences/*/c23")):
        shutil.copytree(folder / "faces", folder / "frames")
        if folder.parent.name != "youtube":
            shutil.rmtree(folder / "faces")
    videos = data.list_videos("ff++", masked_tree, "c23", "train")
    assert [video.method for video in videos] == ["real", "real"]
    assert {frame.parts[-3] for video in videos for frame in video.frames} == {"faces"}
    status, text = check(masked_tree)
    assert status == 1 and "can start" not in text
    assert "reading faces/" in text
    assert "8 of them are in frames/ only, which was cut in another way" in text
    assert "2 real and 0 fake videos" in text


def test_another_data_set_needs_its_folders_and_its_split_only(monkeypatch, tmp_path):
    """README, 'Changing things': its fakes are fakes, though none has a twin."""
    for folder in ("real", "Forged"):
        write_crops(tmp_path / folder / "faces/7", frames=1)
    folders = {"real": tmp_path / "real", "Forged": tmp_path / "Forged"}
    monkeypatch.setattr(data, "method_folders", lambda dataset, root, quality: folders)
    splits = {("real", "7"): "test", ("Forged", "7"): "test"}
    monkeypatch.setattr(data, "official_split", lambda dataset, root: splits)
    videos = data.list_videos("mine", tmp_path, "c23", "test")
    assert [(video.method, video.label) for video in videos] == [("real", 0), ("Forged", 1)]
    frames = data.TestFrames(videos, 32)
    assert [frames[n]["has_mask"] for n in range(2)] == [False, False]


@pytest.mark.parametrize("dataset, split, files, found", [
    ("ff++", "train", f"{YOUTUBE}/c23/videos/071.mp4", f"{YOUTUBE}/c23/videos/071.mp4"),
    ("celeb-df-v1", "test", "Celeb-real/0.mp4 List_of_testing_videos.txt", "Celeb-real/0.mp4"),
    ("ff++", "test", f"{YOUTUBE}/c23/videos/.x.mp4 {REAL}/071/0000.png", f"{REAL}/071/0000.png"),
    ("ff++", "train", f"{YOUTUBE}/c40/faces/071/0.png", f"{YOUTUBE}/c40/faces/071/0.png"),
    ("ff++", "train", f"{REAL}/071/0000.jpg", f"{REAL}/071/0000.jpg"),
    ("ff++", "train", f"{REAL}/071/0000.PNG", f"{REAL}/071/0000.PNG"),
])
def test_without_videos_a_sentence_says_what_is_there(tmp_path, dataset, split, files, found):
    for file in files.split():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sentence = stopped(data.require_videos, dataset, tmp_path, "c23", split)
    assert sentence.startswith(f"no {dataset} face crops of the {split} split in {tmp_path}")
    assert "/<video>/<frame>.png. " in sentence and "\n" not in sentence
    assert f"Found instead: {tmp_path / found}. " in sentence
    assert f"data.py faces --data {dataset} --root {tmp_path}" in sentence


@pytest.fixture
def masked_videos(masked_tree):
    """Two real videos and eight fakes to train on, with SSIM masks; 48 px."""
    return data.list_videos("ff++", masked_tree, "c23", "train")


def test_training_leaves_fakes_without_any_mask_out_and_needs_both_kinds(masked_videos, capsys):
    videos = list(masked_videos)
    videos[2] = videos[2]._replace(masks=[None, None, None])
    videos[3] = videos[3]._replace(masks=[None, None, videos[3].masks[2]])
    assert data.training_videos(videos) == videos[:2] + videos[3:]
    assert "1 of 10 training videos are left out" in capsys.readouterr().out
    assert data.training_videos(videos, needs_masks=False) == videos
    assert "left out" not in capsys.readouterr().out
    sentence = stopped(data.training_videos, videos[:3])
    assert "2 real and 0 fake" in sentence and "masks.py" in sentence
    sentence = stopped(data.training_videos, videos[3:])
    assert "0 real and 7 fake" in sentence and "python data.py check" in sentence


# ---------------------------------------------------------------- Sec. IV-A3: pictures from disk
def test_every_common_mode_becomes_upright_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))       # left dark, right bright
    image = Image.fromarray(grey)
    for mode in ("L", "LA", "P", "RGB", "RGBA"):
        image.convert(mode).save(tmp_path / "0000.png")
        read = np.asarray(data.read_image(tmp_path / "0000.png"))
        assert np.array_equal(read, np.stack([grey, grey, grey], axis=2)), mode
    exif = Image.Exif()
    exif[0x0112] = 6                            # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "0000.png", exif=exif)
    turned = np.asarray(data.read_image(tmp_path / "0000.png"))
    assert np.array_equal(turned[..., 0], np.rot90(grey, -1))


@pytest.mark.parametrize("kind, part", [
    ("missing", "cannot be read as a picture"), ("text", "cannot be read as a picture"),
    ("truncated", "cannot be read as a picture"), ("16 bit", "not 8 bits a channel"),
    ("59 x 71", "has 59 x 71 pixels, but a face crop is square"),
])
def test_a_picture_that_cannot_be_used_is_named_with_the_reason(tmp_path, kind, part):
    path = tmp_path / "0000.png"
    write_damaged(path, kind)
    with pytest.raises(ValueError) as error:
        data.read_face(path)
    assert str(error.value).startswith(f"{path} ") and part in str(error.value)


def test_only_a_face_of_another_size_is_resized(tmp_path):
    write_crops(tmp_path, frames=1)
    crop, _ = data.read_face(tmp_path / "0000.png")
    assert np.array_equal(np.asarray(data.to_size(crop, 32)), noise(0))
    larger = np.asarray(data.to_size(crop, 64))
    pixels = torch.from_numpy(noise(0)).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear")
    assert np.abs(larger - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def read_mask(folder, image):
    """What read_face makes of a mask image that lies beside a crop of its size."""
    Image.new("RGB", image.size).save(folder / "0000.png")
    image.save(folder / "mask.png")
    return data.read_face(folder / "0000.png", folder / "mask.png")[1]


def test_white_is_manipulated_and_a_resized_mask_stays_binary(tmp_path):
    """X_gt is 1 where the picture is white, as benchmarks store it. Nearest keeps it binary."""
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 8:] = 127
    levels[:, 16:] = 128
    levels[:, 24:] = 255
    image = read_mask(tmp_path, Image.fromarray(levels))
    mask = data.to_mask(image, 32)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.repeat([[0, 1]], 16, axis=1).repeat(32, axis=0))
    assert np.array_equal(data.to_mask(image, 64), mask.repeat(2, 0).repeat(2, 1))
    levels[:] = 0
    levels[:, 1::4] = 255                       # nearest takes every second column, the odd ones
    image = read_mask(tmp_path, Image.fromarray(levels))
    assert data.to_mask(image, 16).tolist() == [[1, 0] * 8] * 16
    assert not data.to_mask(None, 16).any()     # Sec. III-E: all zeros for a real frame
    with pytest.raises(ValueError, match="holds 0 and 1, but on disk a mask is 0 and 255"):
        read_mask(tmp_path, Image.fromarray(levels // 255))


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: degradations
def test_jpeg_is_pillows_at_this_quality_with_chroma_4_2_0():
    image = Image.fromarray(noise(0, 60, 60))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=30, subsampling="4:2:0")
    assert np.array_equal(np.asarray(data.jpeg(image, 30)), np.asarray(Image.open(file)))


def test_resize_is_bilinear_down_and_up_again():
    """READING Sec. IV-A3, against PyTorch's antialiased bilinear interpolation."""
    image = Image.fromarray(noise(0, 60, 60))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    for size in ((30, 30), (60, 60)):
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    expected = pixels[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(data.resize(image, 0.5)) - expected).max() <= 2


def test_blur_spreads_a_point_by_sigma_at_299_px():
    """The variance of a blurred point is sigma^2 = 1 px^2; a crop of 100 px has less."""
    point = np.zeros((299, 299, 3), np.uint8)
    point[149, 149] = 255
    spread = np.asarray(data.blur(Image.fromarray(point), 1.0))[..., 0].astype(float)
    distance = np.arange(299) - 149
    assert (spread * distance ** 2).sum() / spread.sum() == pytest.approx(1, abs=0.25)
    small = np.asarray(data.blur(Image.fromarray(point[100:200, 100:200]), 1.0))
    assert small.max() > 1.5 * spread.max()


def test_each_operation_comes_half_of_the_time_in_any_order_in_its_range(monkeypatch):
    """Sec. IV-A3: "with a probability of 50% in random order".

    README, 'Changing things': another degradation needs only a row of OPERATIONS.
    """
    calls = []

    def recorder(letter):
        def function(image, strength):
            calls[-1].append((letter, float(strength)))
            return image
        return function
    fourth = data.Operation("M", "a fourth", None, (0.0, 1.0), ())
    recorded = [operation._replace(function=recorder(operation.letter))
                for operation in [*data.OPERATIONS, fourth]]
    monkeypatch.setattr(data, "OPERATIONS", recorded)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        calls.append([])
        data.degrade("a picture", rng)
    ranges = {"C": (10, 99), "R": (100 / 299, 199 / 299), "G": (0.1, 1.0), "M": (0, 1)}
    for operation, (low, high) in ranges.items():
        values = [value for call in calls for letter, value in call if letter == operation]
        margin = 0.03 * (high - low)
        assert 0.46 < len(values) / 2000 < 0.54
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high
    qualities = {value for call in calls for letter, value in call if letter == "C"}
    assert qualities == set(range(10, 100))
    orders = {tuple(letter for letter, _ in call) for call in calls}
    assert len(orders) == 65                    # 1 + 4 + 12 + 24 + 24: all subsets and orders


def test_degrading_leaves_the_clean_picture_as_it_is():
    """READING Sec. IV-A3: the release blurs in place, so that its first branch is blurred too."""
    image = Image.fromarray(noise(0, 64, 64))
    changed = 0
    for seed in range(30):
        copy = data.degrade(image, np.random.default_rng(seed))
        assert copy.size == image.size
        changed += copy.tobytes() != image.tobytes()
        assert np.array_equal(np.asarray(image), noise(0, 64, 64))
    assert 15 < changed < 30                    # 7 of 8 expected


# ---------------------------------------------------------------- Sec. IV-A3: training pairs
def test_a_sample_is_one_frame_of_a_video_its_copy_its_mask_and_its_label(masked_videos):
    """Sec. IV-A3: I^1 is the original "without data augmentation", as it is on disk; X_gt fits it.

    Sec. III-E: the mask of a real frame is all zeros.
    """
    pairs = data.TrainingPairs(masked_videos, 48)
    drawn = set()
    degraded = 0
    for number in range(128):
        item = pairs[number]
        video, _ = pairs.draw(number)
        on_disk = [np.array(Image.open(frame)) for frame in video.frames]
        place = [np.array_equal(item["clean"], picture) for picture in on_disk].index(True)
        drawn.add((video.key, place))
        degraded += not np.array_equal(item["degraded"], item["clean"])
        assert item["degraded"].shape == (48, 48, 3) and item["degraded"].dtype == np.uint8
        assert item["label"] == video.label
        mask = np.zeros((48, 48))
        if video.label:
            mask = np.asarray(Image.open(video.masks[place])) / 255
            assert mask.any()
        assert np.array_equal(item["mask"], mask)
    assert 0.6 < degraded / 128 < 1             # 7 of 8 expected
    assert len(drawn) > 25                      # of 30 frames: each of a video's can be drawn


def test_a_sample_is_a_function_of_seed_and_number_whatever_the_workers(masked_videos):
    """The draws are the same for any number of loading processes, GPUs and restarts."""
    alone = {}
    for number in (21, 5, 20):                  # any order, a new data set each time
        alone[number] = data.TrainingPairs(masked_videos, 48, seed=3)[number]
    pairs = data.TrainingPairs(masked_videos, 48, seed=3)
    loader = torch.utils.data.DataLoader(pairs, batch_sampler=[[20, 21], [5]], num_workers=2)
    first, second = loader
    for name in ("clean", "degraded", "mask"):
        assert np.array_equal(first[name], [alone[20][name], alone[21][name]])
        assert np.array_equal(second[name][0], alone[5][name])
    one_frame = [masked_videos[0]._replace(frames=masked_videos[0].frames[:1])]
    pairs, others = [data.TrainingPairs(one_frame, 48, seed, num_classes=5) for seed in (3, 4)]
    same = [np.array_equal(pairs[n]["degraded"], others[n]["degraded"]) for n in range(8)]
    assert not all(same)                        # another seed degrades in another way


@pytest.mark.parametrize("fakes, of_each_real, of_each_fake", [(8, 4, 1), (1, 1, 2), (2, 1, 1)])
def test_reals_and_fakes_are_equally_many(masked_videos, fakes, of_each_real, of_each_fake):
    """READING Sec. IV-A3: half of an epoch is real, 2 real videos x 4 beside 8 fakes.

    If there are fewer fakes than real videos, the fakes are listed again.
    """
    videos = masked_videos[:2 + fakes]
    orders = set()
    for seed in (0, 1):
        pairs = data.TrainingPairs(videos, 48, seed)
        for epoch in (0, 1, 7):
            numbers = range(epoch * len(pairs), (epoch + 1) * len(pairs))
            drawn = [pairs.draw(number)[0].key for number in numbers]
            for video in videos:
                assert drawn.count(video.key) == (of_each_fake if video.label else of_each_real)
            orders.add(tuple(drawn))
    if fakes == 8:
        assert len(orders) == 6                 # each epoch has another order, so has each seed


def test_five_classes_are_the_real_videos_and_four_methods_equally_often(masked_videos):
    """READING Sec. IV-E, Fig. 5: 0 real, 1 DF, 2 FS, 3 F2F, 4 NT; 10 videos, each listed once."""
    pairs = data.TrainingPairs(masked_videos, 48, num_classes=5)
    assert len(pairs) == 10
    classes = ["real", "Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"]
    labels = [pairs[n]["label"] for n in range(10)]
    assert labels == [classes.index(pairs.draw(n)[0].method) for n in range(10)]
    assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_fake_frame_without_a_mask_is_drawn_only_if_no_mask_is_needed(masked_videos):
    """Without the segmentation loss every frame is drawn, with an empty mask."""
    one_left = masked_videos[2]._replace(masks=[None, None, masked_videos[2].masks[2]])
    none_left = masked_videos[3]._replace(masks=[None, None, None])
    videos = [*masked_videos[:2], one_left, none_left]
    only_frame = np.array(Image.open(one_left.frames[2]))
    pairs = data.TrainingPairs(videos, 48)
    numbers = [number for number in range(80) if pairs.draw(number)[0].label]
    assert len(numbers) == 40
    assert all(np.array_equal(pairs[number]["clean"], only_frame) for number in numbers)
    unmasked = data.TrainingPairs(videos, 48, needs_masks=False)
    items = [unmasked[number] for number in range(80)]
    assert not any(item["mask"].any() for item in items)
    pictures = {item["clean"].tobytes() for item in items}
    for frame in one_left.frames + none_left.frames:
        assert np.array(Image.open(frame)).tobytes() in pictures


def test_frames_are_spread_evenly_with_the_first_and_the_last_among_them():
    assert data.evenly_spread("abcdefghij", 4) == ["a", "d", "g", "j"]
    assert data.evenly_spread(range(6), 4) == [0, 2, 3, 5]      # 0, 1.67, 3.33, 5
    assert data.evenly_spread([7, 8], 30) == [7, 8]
    assert data.evenly_spread([7, 8, 9], 1) == [7]


def test_every_frame_is_tested_and_those_with_a_mask_say_so(masked_tree, masked_videos):
    """Every frame is scored. IoU needs to know which frames have a mask."""
    masked_videos[-1].masks[1].unlink()
    videos = data.list_videos("ff++", masked_tree, "c23", "train")
    real = videos[0]
    fake = videos[-1]
    frames = data.TestFrames([real, fake], 48)
    items = [frames[number] for number in range(len(frames))]
    assert [item["video"] for item in items] == [0, 0, 0, 1, 1, 1]
    assert [item["has_mask"] for item in items] == [False, False, False, True, False, True]
    for item, frame in zip(items, real.frames + fake.frames):
        assert np.array_equal(item["image"], np.array(Image.open(frame)))
        assert item["mask"].any() == item["has_mask"]
    expected = np.asarray(Image.open(fake.masks[2])) / 255
    assert np.array_equal(items[5]["mask"], expected)
    few = data.TestFrames([real], 48, limit=2, operation=(lambda image, strength: image.point(
        lambda value: strength - value), 255))
    assert len(few) == 2
    for n, frame in ((0, real.frames[0]), (1, real.frames[2])):
        assert np.array_equal(few[n]["image"], 255 - np.array(Image.open(frame)))


@pytest.mark.parametrize("kind", [data.TrainingPairs, data.TestFrames])
def test_a_mask_of_another_size_than_its_crop_is_refused(masked_videos, kind):
    """Resized to 24 px, the mask would fit the crop, but it belongs to another box."""
    fake = masked_videos[2]
    for path in fake.masks:
        Image.open(path).resize((24, 24)).save(path)
    frames = kind([masked_videos[0], fake], 24)
    with pytest.raises(ValueError, match="has 24 x 24 pixels, .* 48 x 48") as error:
        for number in range(len(frames)):
            frames[number]
    assert str(fake.masks[0].parent) in str(error.value)


def test_only_one_frame_and_mask_of_each_video_are_opened(masked_videos, monkeypatch):
    """A frame that breaks later stops the run when it is drawn, with its path."""
    opened = mock.Mock(wraps=Image.open)
    write_damaged(masked_videos[0].frames[1], "truncated")
    masked_videos[2].masks[0] = None            # so its second frame is looked at
    monkeypatch.setattr(Image, "open", opened)
    data.look_at_first_frames(masked_videos, 2)
    assert opened.call_count == 2 + 2 * 8       # a frame of each video, a mask of each fake
    assert mock.call(masked_videos[2].masks[1]) in opened.call_args_list
    frames = data.TestFrames(masked_videos, 48)
    frames[0]
    with pytest.raises(ValueError, match="cannot be read as a picture") as error:
        frames[1]
    assert str(masked_videos[0].frames[1]) in str(error.value)


def test_a_broken_first_frame_or_mask_is_named(masked_videos):
    """Of a video with a few masks, the first frame that has one is looked at."""
    data.look_at_first_frames(masked_videos, 2)
    fake = masked_videos[2]._replace(masks=[None, *masked_videos[2].masks[1:]])
    Image.new("L", (40, 40)).save(fake.masks[1])
    assert str(fake.masks[1]) in stopped(data.look_at_first_frames, [fake], 2)
    frame = masked_videos[1].frames[0]
    write_damaged(frame, "59 x 71")
    assert stopped(data.look_at_first_frames, masked_videos[:2], 2).startswith(str(frame))


# ---------------------------------------------------------------- data.py check
@pytest.fixture
def check(monkeypatch, capsys):
    """data.py check on a tree -> its exit status, and all that it says."""
    def run(root, dataset="ff++"):
        capsys.readouterr()
        flags = ["--data", dataset, "--root", str(root), "--workers", "2"]
        monkeypatch.setattr(sys, "argv", ["data.py", "check", *flags])
        sentence = ""
        try:
            data.main()
        except SystemExit as error:
            sentence = error.code
        return int(sentence != ""), capsys.readouterr().out + sentence
    return run


def test_check_counts_what_is_there_and_what_is_missing(masked_tree, check):
    """Sec. IV-A1: 720, 140, 140 videos in five kinds; the tree has one pair of each split."""
    status, text = check(masked_tree)
    assert status == 0 and "training can start" in text
    for line in ("train: 10 videos, 3590 are missing", "val: 10 videos, 690 are missing",
                 "test: 10 videos, 690 are missing"):
        assert line in text
    for part in ("no mask", "line up", "equals", "differ", "cannot", "look at these"):
        assert part not in text


def test_check_prints_how_much_the_masks_mark_and_names_what_stands_out(masked_tree, check):
    """The masks of 071_054 mark 24 of 48 columns, those of 054_071 one: the median is 26.0 %."""
    for id, columns in (("071_054", 24), ("054_071", 1)):
        levels = np.zeros((48, 48), np.uint8)
        levels[:, :columns] = 255
        for path in (masked_tree / FACESWAP / "masks_ssim" / id).glob("*.png"):
            Image.fromarray(levels).save(path)
    status, text = check(masked_tree)
    assert status == 0
    for method in data.METHODS:
        assert text.count(f"{method}: masks mark") == 3         # of each split
    assert ("FaceSwap: masks mark 26.0% of a crop (median of 2 videos); lowest 2.1% (054_071), "
            "highest 50.0% (071_054)\n") in text
    assert text.count("look at these") == 1
    assert "is the forged face in the crop? 054_071\n" in text


def test_check_compares_fakes_with_their_real_videos(masked_tree, check):
    methods = masked_tree / "manipulated_sequences"
    (methods / "Face2Face/masks_ssim/054_071/0002.png").unlink()
    for frame in (methods / "FaceSwap/c23/faces/071_054").iterdir():    # cut by another box
        moved = np.roll(np.asarray(Image.open(frame)), 11, (0, 1))
        Image.fromarray(moved).save(frame)
    for frame in (methods / "NeuralTextures/c23/faces/071_054").iterdir():
        shutil.copy(data.twin_path(frame), frame)               # a real video under a fake's name
    for frame in (methods / "NeuralTextures/c23/faces/974_953").iterdir():
        Image.open(frame).resize((32, 32)).save(frame)
    shutil.rmtree(methods / "NeuralTextures/masks_ssim/974_953")
    shutil.rmtree(masked_tree / REAL / "953")
    write_damaged(masked_tree / REAL / "720/0001.png", "text")
    status, text = check(masked_tree)
    assert status == 1 and "can start" not in text
    assert "Face2Face/054_071: 1 frames have no mask" in text
    assert "NeuralTextures/974_953: 3 frames have no mask" in text
    for frame, part in (("FaceSwap/c23/faces/071_054/0001.png", "does not line up"),
                        ("NeuralTextures/c23/faces/071_054/0001.png", "equals"),
                        ("NeuralTextures/c23/faces/974_953/0001.png", "and")):
        assert f"{methods / frame} {part}" in text
    for part in ("does not line up", "nothing is forged", "differ in size"):
        assert text.count(part) == 1
    for id in ("953_974", "720_672"):           # of four methods each
        assert text.count(f"/{id}: its real frame") == 4


@pytest.mark.parametrize("ruined, at_start, by_check", [
    ("original_sequences", "0 real and 8 fake", "its real frame"),
    ("manipulated_sequences/*/masks_ssim", "masks.py", "have no mask"),
    (f"{FACESWAP}/c23/faces/054_071/0000.png", "0000.png cannot be", "0000.png cannot be read"),
    (f"{FACESWAP}/masks_ssim/720_672/0000.png", "0000.png cannot be", "0000.png cannot be read"),
    ("*", "Found instead: nothing", "Found instead: nothing"),
])
def test_check_stops_wherever_training_would(masked_tree, check, ruined, at_start, by_check):
    def start_training():
        train = data.training_videos(data.require_videos("ff++", masked_tree, "c23", "train"))
        val = data.list_videos("ff++", masked_tree, "c23", "val")
        data.look_at_first_frames(train + val, 1)
    start_training()
    for path in masked_tree.glob(ruined):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            write_damaged(path, "text")
    assert at_start in stopped(start_training)
    status, text = check(masked_tree)
    assert status == 1 and by_check in text
    assert "can start" not in text


def test_check_of_celeb_df_stops_where_testing_would(tmp_path, check):
    (tmp_path / "List_of_testing_videos.txt").write_text(CELEB_LIST)
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 1 and "no celeb-df-v2 face crops" in text
    crops = write_crops(tmp_path / "Celeb-real/faces/id0_0000")
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 0 and "testing can start" in text
    assert "missing: YouTube-real/00170 Celeb-synthesis/id0_id1_0000\n" in text
    write_damaged(crops / "0001.png", "text")
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 1 and "0001.png cannot be read" in text
