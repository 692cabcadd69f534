"""data.py beside Sec. IV-A: which videos there are, what a draw holds, what damage leads to.

data.py faces has a file of its own, test_faces.py. The demo is drawn once, by demo_faces.py.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import data
import masks

REAL = "original_sequences/youtube/c23/faces"
DEEPFAKES = "manipulated_sequences/Deepfakes/c23/faces"


def noise(seed=0, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_crops(folder, frames=2, height=32, width=32):
    """A made-up video: pictures of noise, folder/0000.png and so on. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(frames):
        Image.fromarray(noise(index, height, width)).save(folder / f"{index:04d}.png")
    return folder


def write_damaged(path, kind):
    """A file that is no picture, or none that is of use."""
    png = io.BytesIO()
    Image.fromarray(noise(0, 64, 64)).save(png, "PNG")
    if kind == "truncated":
        path.write_bytes(png.getvalue()[:2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"I am a text")
    elif kind == "tiny":
        Image.new("RGB", (15, 40)).save(path)
    elif kind == "huge":
        path.write_bytes(b"P6 20000 20000 255\n")               # 1.2 GB, says this header
    elif kind == "float":
        Image.fromarray(np.ones((32, 32), np.float32)).save(path, "TIFF")
    elif kind == "16 bit":
        Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(path)
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x010F] = "maker"
        exif[0x0112] = 6
        block = bytearray(exif.tobytes())
        block[17] = 41                          # the maker's name is of type 41: there is none
        Image.new("RGB", (32, 32)).save(path, "JPEG", exif=bytes(block))


def stopped(capsys, function, *arguments):
    """What a call prints, below its bars, before it ends the program with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert stop.value.code == 2
    return below_the_bar(capsys)


def below_the_bar(capsys):
    """What stands on standard error when all bars are gone: each ends by a return to its start."""
    return capsys.readouterr().err.split("\r")[-1]


def one_sentence(capsys, function, *arguments):
    """As stopped, where all that is printed is one line."""
    sentence = stopped(capsys, function, *arguments)
    assert sentence.count("\n") == 1 and "Traceback" not in sentence
    return sentence


def call_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
    data.main()


# ---------------------------------------------------------------- what all scripts share
def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "log.json"
    for content in (b"first", b"second"):
        data.write_whole(path, content)
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["log.json"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_has_the_temporary_name_already_is_not_written_to(tmp_path, monkeypatch, kind):
    """Design, 3: files are written under a fresh temporary name; a planted link is not followed."""
    path = tmp_path / "log.json"
    path.write_bytes(b"old")
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    in_the_way = tmp_path / ".log.json.abcd.part"
    monkeypatch.setattr(data.secrets, "token_hex", lambda count: "abcd")
    if kind == "file":
        in_the_way.write_bytes(b"somebody's")
    else:
        try:
            in_the_way.symlink_to(other)
        except OSError:
            pytest.skip("this system lets nobody make links")
    with pytest.raises(OSError) as error:
        data.write_whole(path, b"new")
    assert error.value.filename == str(in_the_way)
    assert in_the_way.read_bytes() == b"somebody's"
    assert path.read_bytes() == b"old"
    assert other.read_bytes() == b"somebody's"


def test_a_full_disk_leaves_the_old_file_and_ends_in_a_sentence(tmp_path, capsys):
    """RLIMIT_FSIZE stands for the disk: a file of more than 1000 bytes cannot be written."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        def write():
            data.write_whole(path, bytes(100_000))
        sentence = one_sentence(capsys, data.run, write, "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in sentence and "make room" in sentence
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("error, part", [
    (KeyboardInterrupt(), "stopped by Ctrl-C"),
    (FileNotFoundError(2, "No such file or directory", "clip.mp4"), "clip.mp4: No such file"),
    (OSError(28, "No space left on device"), "output: No space left on device"),
    (OSError(2, "No such file or directory", "\udcff.png"), "\\udcff.png"),     # cannot be printed
])
def test_ctrl_c_and_errors_of_files_end_in_one_sentence(capsys, error, part):
    """Design, 3: what was wrong, and what to do; exit status 2."""
    def main():
        raise error
    sentence = one_sentence(capsys, data.run, main, "run it again")
    assert part in sentence and sentence.endswith("; run it again\n")


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", ""])
def test_a_wrong_number_of_workers_is_refused_in_one_sentence(monkeypatch, capsys, text):
    sentence = one_sentence(capsys, call_main, monkeypatch, "check", "--workers", text)
    assert "--workers" in sentence


def test_whole_numbers_are_taken_from_the_lowest_on():
    number = data.whole_number(2)
    assert number("2") == 2
    assert number("31") == 31


@pytest.mark.parametrize("arguments, part", [
    ([], "command"),
    (["cut"], "cut"),
    (["check", "--data", "imagenet"], "imagenet"),
    (["faces", "--data", "demo"], "demo"),      # the demo has no videos
    (["check", "--quality", "c99"], "c99"),
])
def test_wrong_commands_and_flags_are_refused_in_one_sentence(monkeypatch, capsys, arguments, part):
    assert part in one_sentence(capsys, call_main, monkeypatch, *arguments)


def test_threads_work_at_the_same_time_and_results_keep_their_order():
    """Two jobs meet at a barrier, which one thread alone could not pass."""
    barrier = threading.Barrier(2, timeout=20)

    def meet(number, pause):
        barrier.wait()
        time.sleep(pause)
        return number
    assert data.in_threads(meet, [(1, 0.05), (2, 0)], 2, "meeting") == [1, 2]
    assert data.in_threads(meet, [], 2, "nobody") == []


def test_an_error_in_a_thread_is_raised_and_no_other_job_is_started():
    started = []

    def fail(number):
        started.append(number)
        time.sleep(0.02)
        raise ValueError(f"job {number}")
    with pytest.raises(ValueError, match="job 0"):
        data.in_threads(fail, [(number,) for number in range(100)], 1, "failing")
    assert len(started) < 10


# ---------------------------------------------------------------- Sec. IV-A1: the official split
def test_the_split_is_the_published_one():
    """Sec. IV-A1: 720, 140 and 140 videos. Fingerprints are of FF++'s own train, val, test.json."""
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


def test_a_fake_is_in_the_split_of_both_its_people():
    """Nobody is seen in two splits, neither as the target nor as the source of a fake."""
    splits = data.official_split("ff++", "nowhere")
    for (method, id), split in splits.items():
        for person in id.split("_"):
            assert splits["real", person] == split
    assert splits["Deepfakes", "071_054"] == splits["Deepfakes", "054_071"] == "train"
    assert ("Deepfakes", "071_087") not in splits


def test_the_demos_split_lies_beside_its_videos(tmp_path):
    """Design, 2: the demo is FF++'s layout with its own ids, so it brings its own lists."""
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.json").write_text('[["000", "001"]]')
    (tmp_path / "splits" / "test.json").write_text('[["008", "009"]]')
    splits = data.official_split("demo", tmp_path)
    assert len(splits) == 2 * (2 + 4 * 2)
    assert splits["real", "001"] == splits["FaceSwap", "001_000"] == "train"
    assert splits["Face2Face", "008_009"] == "test"
    assert data.official_split("demo", tmp_path / "nowhere") == {}


CELEB_LIST = ("1 YouTube-real/00170.mp4\n"
              "1 Celeb-real/id0_0000.mp4\n"
              "0 Celeb-synthesis/id0_id1_0000.mp4\n")


def test_celeb_df_is_tested_by_its_official_list_where_1_means_real(tmp_path):
    for name in ("Celeb-real/faces/id0_0000", "Celeb-real/faces/id5_0001",
                 "YouTube-real/faces/00170", "Celeb-synthesis/faces/id0_id1_0000"):
        write_crops(tmp_path / name)
    (tmp_path / "List_of_testing_videos.txt").write_bytes(CELEB_LIST.replace("\n", "\r\n").encode())
    videos = data.require_videos("celeb-df-v2", tmp_path, "c23", "test")
    assert [video.key for video in videos] == [
        ("celeb-df-v2", "Celeb-real", "id0_0000"),              # id5_0001 is not on the list
        ("celeb-df-v2", "YouTube-real", "00170"),
        ("celeb-df-v2", "Celeb-synthesis", "id0_id1_0000")]
    assert [video.label for video in videos] == [0, 0, 1]
    assert data.list_videos("celeb-df-v2", tmp_path, "c23", "train") == []


@pytest.mark.parametrize("text, part", [
    (None, "no "),
    ("0 YouTube-real/00170.mp4", "official list"),              # turned round
    ("1 Celeb-synthesis/id0_id1_0000.mp4", "official list"),
    ("YouTube-real/00170.mp4", "official list"),
    ("1 YouTube/00170.mp4", "official list"),
])
def test_a_missing_or_turned_round_celeb_list_is_said(tmp_path, capsys, text, part):
    write_crops(tmp_path / "YouTube-real/faces/00170")
    path = tmp_path / "List_of_testing_videos.txt"
    if text:
        path.write_text(text)
    sentence = one_sentence(capsys, data.list_videos, "celeb-df-v1", tmp_path, "c23", "test")
    assert str(path) in sentence and part in sentence


# ---------------------------------------------------------------- Sec. IV-A1: the videos
def test_the_path_is_the_database():
    """Design, 2: a fake frame, the real frame it was made on and its mask bear one name."""
    root = Path("FF")
    frame = root / "manipulated_sequences/Deepfakes/c40/faces/000_003/0012.png"
    assert data.twin_path(frame) == root / "original_sequences/youtube/c40/faces/000/0012.png"
    method = root / "manipulated_sequences/Deepfakes"
    assert data.mask_path(frame, "ssim") == method / "masks_ssim/000_003/0012.png"
    assert data.mask_path(frame, "diff") == method / "masks_diff/000_003/0012.png"
    assert data.mask_path(frame, "given") == method / "c23/masks/000_003/0012.png"


def test_a_video_is_known_by_data_set_method_and_id(tiny_tree):
    """Design, 2: ids repeat across the four methods; the label never depends on having a twin."""
    videos = data.list_videos("ff++", tiny_tree, "c23", "train")
    expected = [("ff++", "real", "054"), ("ff++", "real", "071")]
    for method in ("Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"):
        expected += [("ff++", method, "054_071"), ("ff++", method, "071_054")]
    assert [video.key for video in videos] == expected
    for video in videos:
        assert video.label == (0 if video.method == "real" else 1)
        assert [frame.name for frame in video.frames] == ["0000.png", "0001.png", "0002.png"]
        for frame in video.frames:
            assert frame.parent.name == video.id
            if video.label:
                assert data.twin_path(frame).is_file()
    shutil.rmtree(tiny_tree / REAL)
    alone = data.list_videos("ff++", tiny_tree, "c23", "train")
    assert [video.key for video in alone] == expected[2:]
    assert all(video.label == 1 for video in alone)


def test_only_png_folders_of_the_split_are_videos(tmp_path):
    """Hidden files and half-written folders, other pictures, and ids that no list names."""
    write_crops(tmp_path / REAL / "071")
    (tmp_path / REAL / "071" / ".0002.png").touch()             # as macOS leaves behind
    (tmp_path / REAL / "071" / "0002.jpg").touch()
    write_crops(tmp_path / REAL / ".054.part")
    write_crops(tmp_path / REAL / "stranger")
    (tmp_path / REAL / "054").mkdir()
    (tmp_path / REAL / "087").touch()
    videos = data.list_videos("ff++", tmp_path, "c23", "train")
    assert [video.id for video in videos] == ["071"]
    assert [frame.name for frame in videos[0].frames] == ["0000.png", "0001.png"]


def test_raw_is_another_name_of_c0(tmp_path):
    """FF++'s download calls c0 raw; a folder c0 beside it comes first, method by method."""
    for top in ("original_sequences/youtube", "manipulated_sequences/FaceSwap"):
        write_crops(tmp_path / top / "raw/faces" / ("071" if "youtube" in top else "071_054"))
    raw = data.list_videos("ff++", tmp_path, "c0", "train")
    assert [video.frames[0].parts[-4] for video in raw] == ["raw", "raw"]
    assert data.twin_path(raw[1].frames[0]) == raw[0].frames[0]
    write_crops(tmp_path / "original_sequences/youtube/c0/faces/071")
    both = data.list_videos("ff++", tmp_path, "c0", "train")
    assert [video.frames[0].parts[-4] for video in both] == ["c0", "raw"]


def test_a_benchmarks_crops_and_masks_go_together(tmp_path):
    """Design, 2: frames/ with masks/ beside them, of c23 for every quality that has none.

    Our crops in faces/ are of another box, so that the benchmark's masks do not fit them.
    """
    method = tmp_path / "manipulated_sequences/FaceSwap"
    for quality in ("c23", "c40"):
        write_crops(tmp_path / f"original_sequences/youtube/{quality}/frames/071")
        write_crops(method / quality / "frames/071_054")
    write_crops(method / "c23/masks/071_054")
    fake = data.list_videos("ff++", tmp_path, "c40", "train", "given")[1]
    c23_mask = method / "c23/masks/071_054/0000.png"
    assert data.mask_path(fake.frames[0], "given") == c23_mask
    assert data.drawable_frames(fake, "given") == fake.frames
    write_crops(method / "c40/masks/071_054", frames=1)
    assert data.mask_path(fake.frames[0], "given") == method / "c40/masks/071_054/0000.png"
    assert data.mask_path(fake.frames[1], "given") == method / "c23/masks/071_054/0001.png"
    write_crops(method / "c40/faces/071_054")
    for mask, kind in (("given", "frames"), ("ssim", "faces"), ("diff", "faces")):
        fake = data.list_videos("ff++", tmp_path, "c40", "train", mask)[1]
        assert fake.frames[0].parts[-3] == kind


def test_a_fake_frame_is_drawn_where_it_has_a_mask_and_a_real_one_always(masked_tree):
    videos = data.list_videos("ff++", masked_tree, "c23", "train")
    fake = videos[2]
    data.mask_path(fake.frames[1], "ssim").unlink()
    assert data.drawable_frames(fake, "ssim") == [fake.frames[0], fake.frames[2]]
    assert data.drawable_frames(fake, "diff") == []
    assert data.drawable_frames(fake, None) == fake.frames
    assert data.drawable_frames(videos[0], "ssim") == videos[0].frames


@pytest.mark.parametrize("text", ["{", "[1]", '[["000"]]', '{"a": 1}'])
def test_a_damaged_split_of_the_demo_is_one_sentence(tmp_path, capsys, text):
    path = tmp_path / "splits" / "train.json"
    path.parent.mkdir()
    path.write_text(text)
    assert str(path) in one_sentence(capsys, data.official_split, "demo", tmp_path)


def test_videos_that_are_cut_are_not_to_be_cut_again(tmp_path, capsys):
    """All train videos that are there have crops; it is the test split that is asked for."""
    touch(tmp_path / "original_sequences/youtube/c23/videos/071.mp4")
    write_crops(tmp_path / REAL / "071")
    sentence = one_sentence(capsys, data.require_videos, "ff++", tmp_path, "c23", "test")
    assert "none of the videos there is in the test split" in sentence


def test_a_mask_of_ones_is_refused(tmp_path):
    Image.fromarray(np.ones((32, 32), np.uint8)).save(tmp_path / "ones.png")
    with pytest.raises(ValueError, match="on disk a mask is 0 and 255"):
        data.read_mask(tmp_path / "ones.png", 32)


def test_another_data_set_needs_its_folders_and_its_split_only(monkeypatch, tmp_path):
    """README, 'Where to start changing things': its fakes are fakes, though none has a twin."""
    for folder in ("real", "Forged"):
        (tmp_path / folder / "faces" / "7").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "faces" / "7" / "0.png")

    def folders(dataset, root, quality):
        return {"real": tmp_path / "real", "Forged": tmp_path / "Forged"}
    monkeypatch.setattr(data, "method_folders", folders)
    splits = {("real", "7"): "test", ("Forged", "7"): "test"}
    monkeypatch.setattr(data, "official_split", lambda dataset, root: splits)
    monkeypatch.setitem(data.ROOTS, "mine", str(tmp_path))
    videos = data.list_videos("mine", tmp_path, "c23", "test")
    assert [(video.method, video.label) for video in videos] == [("real", 0), ("Forged", 1)]
    frames = data.TestFrames(videos, 32)
    assert [frames[n]["has_mask"] for n in range(2)] == [False, False]


# ---------------------------------------------------------------- no videos: what to do
def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_videos_that_are_not_cut_are_pointed_to_the_command_that_cuts_them(tmp_path, capsys):
    touch(tmp_path / "original_sequences/youtube/c23/videos/071.mp4")
    sentence = one_sentence(capsys, data.require_videos, "ff++", tmp_path, "c23", "train")
    assert f"python data.py faces --data ff++ --root {tmp_path}" in sentence
    assert f"{tmp_path / REAL}" in sentence                     # where it looked
    (tmp_path / "List_of_testing_videos.txt").write_text(CELEB_LIST)
    touch(tmp_path / "Celeb-real/id0_0000.mp4")
    sentence = one_sentence(capsys, data.require_videos, "celeb-df-v1", tmp_path, "c23", "test")
    assert f"python data.py faces --data celeb-df-v1 --root {tmp_path}" in sentence


def test_crops_of_other_qualities_are_named(tmp_path, capsys):
    for quality in ("raw", "c40"):
        write_crops(tmp_path / f"original_sequences/youtube/{quality}/faces/071")
    sentence = one_sentence(capsys, data.require_videos, "ff++", tmp_path, "c23", "train")
    assert "crops of c0, c40" in sentence and "--quality" in sentence


def test_a_split_without_any_of_the_videos_is_named(tmp_path, capsys):
    write_crops(tmp_path / REAL / "071")
    sentence = one_sentence(capsys, data.require_videos, "ff++", tmp_path, "c23", "test")
    assert "none of the videos there is in the test split" in sentence


def test_an_empty_place_is_told_where_the_data_comes_from(tmp_path, capsys):
    sentence = one_sentence(capsys, data.require_videos, "ff++", tmp_path / "none", "c23", "train")
    for part in (str(tmp_path / "none"), "github.com/ondyari/FaceForensics", "data.py faces",
                 "train.py --data demo"):
        assert part in sentence
    sentence = one_sentence(capsys, data.require_videos, "demo", tmp_path, "c23", "train")
    assert "tests/demo_faces.py" in sentence


# ---------------------------------------------------------------- can training start?
def test_fakes_without_any_mask_are_left_out_and_counted(masked_tree, capsys):
    """Design, 2: a fake without its real video, or without any mask, is left out in training."""
    shutil.rmtree(masked_tree / "manipulated_sequences/Deepfakes/masks_ssim/071_054")
    masked = masked_tree / "manipulated_sequences/FaceSwap/masks_ssim/071_054"
    (masked / "0000.png").unlink()                              # two masks are left
    capsys.readouterr()
    train, val = data.training_videos("ff++", masked_tree, "c23", "ssim")
    assert "1 of 10 training videos are left out" in capsys.readouterr().out
    names = [(video.method, video.id) for video in train]
    assert len(names) == 9 and ("Deepfakes", "071_054") not in names
    assert len(val) == 10
    assert val == data.list_videos("ff++", masked_tree, "c23", "val")
    everything, _ = data.training_videos("ff++", masked_tree, "c23", "ssim", needs_masks=False)
    assert len(everything) == 10
    assert "left out" not in capsys.readouterr().out


def test_training_needs_real_videos_and_masks(tiny_tree, capsys):
    start = (data.training_videos, "ff++", tiny_tree, "c23", "ssim")
    sentence = stopped(capsys, *start)
    assert "no fake c23 video" in sentence and "python masks.py" in sentence
    masks.write_masks("ff++", tiny_tree, "ssim", 1)
    shutil.rmtree(tiny_tree / REAL)
    sentence = stopped(capsys, *start)
    assert "no real c23 video" in sentence and "python data.py check" in sentence


# ---------------------------------------------------------------- Sec. IV-A3: pictures from disk
def test_every_common_mode_becomes_upright_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))       # left dark, right bright
    image = Image.fromarray(grey)
    for mode in ("L", "LA", "P", "RGB", "RGBA"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
    image.convert("RGB").convert("CMYK").save(tmp_path / "CMYK.jpg", quality=100)
    for path in tmp_path.iterdir():
        read = np.asarray(data.read_image(path)).astype(int)
        assert read.shape == (32, 32, 3)
        assert np.abs(read - grey[..., None]).max() <= 6, path.name
    image.point(lambda level: 255 * (level > 127)).convert("1").save(tmp_path / "1.png")
    read = np.asarray(data.read_image(tmp_path / "1.png"))
    assert np.array_equal(read[..., 1], np.where(grey > 127, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6                            # turn by 90 degrees clockwise to see it upright
    image.convert("RGB").save(tmp_path / "turned.jpg", exif=exif, quality=100)
    turned = np.asarray(data.read_image(tmp_path / "turned.jpg")).astype(int)
    assert np.abs(turned[..., 0] - np.rot90(grey, -1)).max() <= 6


@pytest.mark.parametrize("kind", ["missing", "folder", "truncated", "empty", "text", "tiny", "huge",
                                  "float", "16 bit", "exif"])
def test_a_damaged_or_odd_picture_is_one_sentence(tmp_path, kind):
    """Design, 7: damaged, missing, hostile inputs: one sentence each."""
    path = tmp_path / "0000.png"
    if kind == "folder":
        path.mkdir()
    else:
        write_damaged(path, kind)
    with pytest.raises(ValueError, match="cannot be read as a picture") as error:
        data.read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_face_of_another_size_is_resized_and_one_of_this_size_is_not_touched(tmp_path):
    write_crops(tmp_path, frames=1)
    crop = data.read_face(tmp_path / "0000.png", 32)
    assert np.array_equal(np.asarray(crop), noise(0))
    larger = np.asarray(data.read_face(tmp_path / "0000.png", 64)).astype(int)
    pixels = torch.from_numpy(noise(0)).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear")
    assert np.abs(larger - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def test_a_tensor_has_the_pictures_bytes_channels_first():
    tensor = data.to_tensor(Image.fromarray(noise(3, 20, 30)))
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 20, 30)
    assert tensor[2, 5, 7] == noise(3, 20, 30)[5, 7, 2]


def test_white_is_manipulated_and_a_resized_mask_stays_binary(tmp_path):
    """X_gt: 1 where white, as benchmarks store it; nearest keeps it so."""
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 8:] = 127
    levels[:, 16:] = 128
    levels[:, 24:] = 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    mask = data.read_mask(tmp_path / "mask.png", 32)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, np.repeat([[0, 1]], 16, axis=1).repeat(32, axis=0))
    assert np.array_equal(data.read_mask(tmp_path / "mask.png", 64), mask.repeat(2, 0).repeat(2, 1))
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 1::4] = 255                       # nearest takes every second column, the odd ones
    Image.fromarray(levels).save(tmp_path / "lines.png")
    assert data.read_mask(tmp_path / "lines.png", 16).tolist() == [[1, 0] * 8] * 16


def test_a_mask_of_0_and_1_is_refused_and_an_empty_one_is_not(tmp_path):
    levels = np.zeros((32, 32), np.uint8)
    Image.fromarray(levels).save(tmp_path / "empty.png")
    assert not data.read_mask(tmp_path / "empty.png", 32).any()
    levels[4:20, 4:20] = 1
    Image.fromarray(levels).save(tmp_path / "ones.png")
    with pytest.raises(ValueError, match="0 and 1; on disk a mask is 0 and 255"):
        data.read_mask(tmp_path / "ones.png", 32)


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: degradations
def test_jpeg_is_pillows_at_this_quality():
    image = Image.fromarray(noise(0, 60, 60))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=30, subsampling="4:2:0")
    assert np.array_equal(np.asarray(data.jpeg(image, 30)), np.asarray(Image.open(file)))


def test_resize_is_bilinear_down_and_up_again():
    """DEPARTURE Sec. IV-A3, against PyTorch's antialiased bilinear interpolation."""
    image = Image.fromarray(noise(0, 60, 60))
    pixels = data.to_tensor(image)[None].float()
    for size in ((30, 30), (60, 60)):
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    expected = pixels[0].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(data.resize(image, 0.5)) - expected).max() <= 2


def test_blur_spreads_a_point_by_sigma_at_299_px():
    """The variance of a blurred point is sigma^2 = 1 px^2; a crop of a third of 299 px has less."""
    point = np.zeros((299, 299, 3), np.uint8)
    point[149, 149] = 255
    spread = np.asarray(data.blur(Image.fromarray(point), 1.0))[..., 0].astype(float)
    distance = np.arange(299) - 149
    assert (spread * distance ** 2).sum() / spread.sum() == pytest.approx(1, abs=0.25)
    small = np.asarray(data.blur(Image.fromarray(point[100:200, 100:200]), 1.0))
    assert small.max() > 1.5 * spread.max()


def test_each_operation_comes_half_of_the_time_in_every_order_within_its_range(monkeypatch):
    """Sec. IV-A3: "with a probability of 50% in random order"."""
    calls = []

    def recorder(name):
        def operation(image, value):
            calls[-1].append((name, float(value)))
            return image
        return operation
    for name in ("jpeg", "resize", "blur"):
        monkeypatch.setattr(data, name, recorder(name))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        calls.append([])
        data.degrade("a picture", rng)
    ranges = {"jpeg": (10, 99), "resize": (100 / 299, 199 / 299), "blur": (0.1, 1.0)}
    for operation, (low, high) in ranges.items():
        values = [value for call in calls for name, value in call if name == operation]
        margin = 0.03 * (high - low)
        assert 0.46 < len(values) / 2000 < 0.54
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high
    qualities = {value for call in calls for name, value in call if name == "jpeg"}
    assert qualities == set(range(10, 100))
    orders = {tuple(name for name, _ in call) for call in calls}
    assert len(orders) == 16                    # 1 + 3 + 6 + 6: every subset in every order


def test_a_fourth_operation_is_drawn_as_often_as_the_three(monkeypatch):
    """README, 'Where to start changing things': it is enough to add it to OPERATIONS."""
    times = []

    def mirror(image, rng):
        times.append(1)
        return image
    monkeypatch.setattr(data, "OPERATIONS", [*data.OPERATIONS, mirror])
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (16, 16))
    for _ in range(400):
        data.degrade(image, rng)
    assert 0.4 < len(times) / 400 < 0.6


def test_degrading_leaves_the_clean_picture_as_it_is():
    """DEPARTURE Sec. IV-A3: the release's in-place blur leaks into the first branch."""
    image = Image.fromarray(noise(0, 64, 64))
    changed = 0
    for seed in range(30):
        copy = data.degrade(image, np.random.default_rng(seed))
        assert copy.size == image.size
        changed += copy.tobytes() != image.tobytes()
        assert np.array_equal(np.asarray(image), noise(0, 64, 64))
    assert changed > 15                         # 7 of 8 expected


# ---------------------------------------------------------------- Sec. IV-A3: training pairs
@pytest.fixture
def masked_videos(masked_tree):
    """Two real videos and eight fakes to train on, with SSIM masks; 48 px."""
    return data.list_videos("ff++", masked_tree, "c23", "train")


def test_a_sample_is_one_frame_of_a_video_its_copy_its_mask_and_its_label(masked_videos):
    """Sec. IV-A3: I^1 is the original "without data augmentation", as it is on disk; X_gt fits it.

    Sec. III-E: the mask of a real frame is all zeros.
    """
    pairs = data.TrainingPairs(masked_videos, 48)
    drawn = set()
    degraded = 0
    for number in range(64):
        item = pairs[number]
        video, _ = pairs.draw(number)
        on_disk = [data.to_tensor(Image.open(frame)) for frame in video.frames]
        place = [torch.equal(item["clean"], picture) for picture in on_disk].index(True)
        drawn.add((video.key, place))
        degraded += not torch.equal(item["degraded"], item["clean"])
        assert item["degraded"].shape == (3, 48, 48) and item["degraded"].dtype == torch.uint8
        assert item["label"] == video.label
        mask = np.zeros((48, 48))
        if video.label:
            path = data.mask_path(video.frames[place], "ssim")
            mask = np.asarray(Image.open(path)) / 255
            assert mask.any()
        assert np.array_equal(item["mask"].numpy(), mask)
    assert 0.6 < degraded / 64 < 1              # 7 of 8 expected
    assert len(drawn) > 20                      # of 30 frames: each of a video's can be drawn


def test_a_sample_is_a_function_of_seed_and_number_whatever_the_workers(masked_videos):
    """Design, 4: the same draws whatever the loading processes, GPUs or restarts."""
    alone = {}
    for number in (21, 5, 20):                  # any order, a new data set each time
        alone[number] = data.TrainingPairs(masked_videos, 48, seed=3)[number]
    pairs = data.TrainingPairs(masked_videos, 48, seed=3)
    loader = torch.utils.data.DataLoader(pairs, batch_sampler=[[20, 21], [5]], num_workers=2)
    first, second = loader
    for name in ("clean", "degraded", "mask"):
        assert torch.equal(first[name], torch.stack([alone[20][name], alone[21][name]]))
        assert torch.equal(second[name][0], alone[5][name])


def test_every_frame_of_a_video_is_drawn_about_as_often(masked_videos):
    """Sec. IV-A3: an epoch takes one random frame of each listed video."""
    pairs = data.TrainingPairs(masked_videos[:1], 48)
    frames = masked_videos[0].frames
    pictures = [data.to_tensor(data.read_face(frame, 48)) for frame in frames]
    times = [0] * len(frames)
    for n in range(120):
        clean = pairs[n]["clean"]
        times[[torch.equal(clean, picture) for picture in pictures].index(True)] += 1
    assert min(times) > 0.6 * 120 / len(frames)


def test_another_seed_draws_in_another_order_and_degrades_in_another_way(masked_videos):
    orders = []
    degraded = []
    for seed in (3, 4):
        pairs = data.TrainingPairs(masked_videos, 48, seed)
        orders.append([pairs.draw(number)[0].key for number in range(16)])
        single = data.TrainingPairs(masked_videos[:1], 48, seed)
        degraded.append(torch.stack([single[number]["degraded"] for number in range(8)]))
    assert orders[0] != orders[1]
    assert not torch.equal(*degraded)


def test_an_epoch_lists_each_fake_once_and_each_real_as_often_as_there_are_methods(masked_videos):
    """READING Sec. IV-A3: half of an epoch is real. 2 real videos x 4 and 8 fakes are 16."""
    pairs = data.TrainingPairs(masked_videos, 48)
    assert len(pairs) == 16
    orders = []
    for epoch in (0, 1, 7):
        numbers = range(16 * epoch, 16 * epoch + 16)
        drawn = [pairs.draw(number)[0].key for number in numbers]
        for video in masked_videos:
            assert drawn.count(video.key) == (1 if video.label else 4)
        orders.append(drawn)
    assert orders[0] != orders[1] != orders[2]


def test_five_classes_are_the_four_methods_and_the_real_videos_in_equal_shares(masked_videos):
    """READING Sec. IV-E, Fig. 5: 0 real, 1 DF, 2 FS, 3 F2F, 4 NT; 10 videos, each listed once."""
    pairs = data.TrainingPairs(masked_videos, 48, num_classes=5)
    assert len(pairs) == 10
    classes = ["real", "Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures"]
    labels = []
    for number in range(10):
        labels.append(pairs[number]["label"])
        assert labels[-1] == classes.index(pairs.draw(number)[0].method)
    assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_fake_frame_without_a_mask_is_not_drawn_unless_no_mask_is_needed(masked_videos):
    """Design, 2. Without the segmentation loss, mask=None draws every frame, with empty masks."""
    fake = masked_videos[2]
    other = masked_videos[3]
    for frame in fake.frames[:2]:
        data.mask_path(frame, "ssim").unlink()
    shutil.rmtree(data.mask_path(other.frames[0], "ssim").parent)
    pairs = data.TrainingPairs(masked_videos, 48)
    assert len(pairs) == 2 * 4 + 7              # 7 / 2 rounds to 4
    only_frame = data.to_tensor(Image.open(fake.frames[2]))
    drawn = [number for number in range(150) if pairs.draw(number)[0].key == fake.key]
    assert len(drawn) == 10
    assert all(torch.equal(pairs[number]["clean"], only_frame) for number in drawn)
    unmasked = data.TrainingPairs(masked_videos, 48, mask=None)
    assert len(unmasked) == 16
    items = [unmasked[number] for number in range(32)]
    assert not any(item["mask"].any() for item in items)
    pictures = {item["clean"].numpy().tobytes() for item in items}
    undrawn = [data.to_tensor(Image.open(frame)) for frame in fake.frames[:2] + other.frames]
    assert any(picture.numpy().tobytes() in pictures for picture in undrawn)


def test_a_picture_that_breaks_during_training_is_an_error_with_its_path(masked_videos):
    """Design, 3: no replacement, no counting, no skipping."""
    for frame in masked_videos[0].frames:
        write_damaged(frame, "truncated")
    pairs = data.TrainingPairs(masked_videos, 48)
    keys = [pairs.draw(number)[0].key for number in range(16)]
    number = keys.index(masked_videos[0].key)
    with pytest.raises(ValueError, match="cannot be read as a picture") as error:
        pairs[number]
    assert str(masked_videos[0].frames[0].parent) in str(error.value)


# ---------------------------------------------------------------- Sec. IV-A3: test frames
def test_frames_are_spread_evenly_with_the_first_and_the_last_among_them():
    assert data.evenly_spread("abcdefghij", 4) == ["a", "d", "g", "j"]
    assert data.evenly_spread(range(6), 4) == [0, 2, 3, 5]      # 0, 1.67, 3.33, 5
    assert data.evenly_spread([7, 8], 30) == [7, 8]
    assert data.evenly_spread([7, 8, 9], 1) == [7]
    assert data.evenly_spread([], 30) == []


def test_every_frame_is_tested_and_those_with_a_mask_say_so(masked_videos):
    """Design, 2: "Testing: every frame is scored; IoU says over how many"."""
    real = masked_videos[0]
    fake = masked_videos[-1]
    data.mask_path(fake.frames[1], "ssim").unlink()
    frames = data.TestFrames([real, fake], 48)
    items = [frames[number] for number in range(len(frames))]
    assert [item["video"] for item in items] == [0, 0, 0, 1, 1, 1]
    assert [item["has_mask"] for item in items] == [False, False, False, True, False, True]
    for item, frame in zip(items, real.frames + fake.frames):
        assert torch.equal(item["image"], data.to_tensor(Image.open(frame)))
        assert item["mask"].any() == item["has_mask"]
    expected = np.asarray(Image.open(data.mask_path(fake.frames[2], "ssim"))) / 255
    assert np.array_equal(items[5]["mask"].numpy(), expected)


def test_a_limit_spreads_and_a_degradation_comes_before_the_network(masked_videos):
    def invert(image):
        return Image.fromarray(255 - np.asarray(image))
    video = masked_videos[0]
    frames = data.TestFrames([video], 48, limit=2, degradation=invert)
    assert len(frames) == 2
    for item, frame in zip((frames[0], frames[1]), (video.frames[0], video.frames[2])):
        assert torch.equal(item["image"], 255 - data.to_tensor(Image.open(frame)))


def test_celeb_df_has_no_masks(tmp_path):
    """Design, 2: a folder that would be taken for FF++'s masks is not looked into."""
    folder = write_crops(tmp_path / "Celeb-synthesis/faces/id0_id1_0000")
    misleading = write_crops(tmp_path / "masks_ssim/id0_id1_0000")
    write_damaged(misleading / "0001.png", "text")
    frames = sorted(folder.iterdir())
    video = data.Video("celeb-df-v2", "Celeb-synthesis", "id0_id1_0000", 1, frames)
    items = data.TestFrames([video], 32)
    assert [items[0]["has_mask"], items[1]["has_mask"]] == [False, False]
    assert data.broken_files(video, "ssim") == []


# ---------------------------------------------------------------- is every picture whole?
def test_all_broken_pictures_and_masks_are_named_before_training(masked_videos, capsys):
    """Design, 3: every picture and mask is opened once, and all that are broken are named."""
    capsys.readouterr()
    data.stop_if_broken(masked_videos, "ssim", 2)
    assert below_the_bar(capsys) == ""
    picture = masked_videos[1].frames[2]
    write_damaged(picture, "truncated")
    torn_mask = data.mask_path(masked_videos[2].frames[0], "ssim")
    write_damaged(torn_mask, "text")
    other_mask = data.mask_path(masked_videos[3].frames[1], "ssim")
    Image.new("L", (40, 40)).save(other_mask)
    lines = stopped(capsys, data.stop_if_broken, masked_videos, "ssim", 2).splitlines()
    assert len(lines) == 4
    for path, sentence in zip((picture, torn_mask, other_mask), lines):
        assert sentence.startswith(str(path))
    assert "has another size" in lines[2]
    assert lines[3].startswith("3 files cannot be used")
    lines = stopped(capsys, data.stop_if_broken, masked_videos, None, 2).splitlines()
    assert len(lines) == 2 and str(picture) in lines[0]         # masks are not used


def test_full_frames_are_refused_once_a_video(tmp_path, capsys):
    """Design, 2: full frames where crops should be are named and refused."""
    write_crops(tmp_path / REAL / "071", frames=3, height=36, width=64)
    videos = data.list_videos("ff++", tmp_path, "c23", "train")
    lines = stopped(capsys, data.stop_if_broken, videos, "ssim", 1).splitlines()
    assert len(lines) == 2
    assert f"{tmp_path / REAL / '071'} holds full frames" in lines[0]
    assert "python data.py faces" in lines[0]


# ---------------------------------------------------------------- data.py check
@pytest.fixture
def check(monkeypatch, capsys):
    """data.py check on a tree -> its exit status, and all that it says."""
    def run(root, dataset="ff++"):
        capsys.readouterr()
        status = 0
        try:
            call_main(monkeypatch, "check", "--data", dataset, "--root", root, "--workers", 2)
        except SystemExit as error:
            status = error.code
        said = capsys.readouterr()
        return status, said.out + said.err
    return run


def test_check_counts_what_is_there_and_what_is_missing(masked_tree, check):
    """Sec. IV-A1: 720, 140, 140 videos in five kinds; the tree has one pair of each split."""
    status, text = check(masked_tree)
    assert status == 0 and "training can start" in text
    for line in ("train: 10 videos, 3590 are missing", "val: 10 videos, 690 are missing",
                 "test: 10 videos, 690 are missing"):
        assert line in text
    for part in ("no mask", "line up", "equals", "differ", "cannot"):
        assert part not in text


def test_check_names_the_missing_where_they_are_few(tiny_tree, check):
    (tiny_tree / "splits").mkdir()
    (tiny_tree / "splits/train.json").write_text('[["071", "054"]]')
    masks.write_masks("demo", tiny_tree, "ssim", 1)
    shutil.rmtree(tiny_tree / "manipulated_sequences/Face2Face/c23/faces/054_071")
    shutil.rmtree(tiny_tree / "manipulated_sequences/FaceSwap/c23/faces/071_054")
    status, text = check(tiny_tree, "demo")
    assert status == 0
    assert "missing: FaceSwap/071_054 Face2Face/054_071\n" in text


def test_check_compares_fakes_with_their_real_videos(masked_tree, check):
    """None of these stops training; each is named."""
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
    status, text = check(masked_tree)
    assert status == 0 and "training can start" in text
    assert "Face2Face/054_071: 1 frames have no mask (python masks.py)" in text
    assert "NeuralTextures/974_953: 3 frames have no mask" in text
    assert text.count("does not line up") == 1
    assert f"{methods / 'FaceSwap/c23/faces/071_054/0001.png'} does not line up" in text
    assert text.count("nothing is forged") == 1
    assert f"{methods / 'NeuralTextures/c23/faces/071_054/0001.png'} equals" in text
    assert text.count("differ in size") == 1
    assert f"{methods / 'NeuralTextures/c23/faces/974_953/0001.png'} and" in text
    for method in data.METHODS:
        assert f"{method}/953_974: its real frame" in text
    assert text.count("is missing") == 4


def ruin(root, how):
    """Takes from a good tree what training cannot do without."""
    fakes = root / "manipulated_sequences"
    if how == "no real videos":
        shutil.rmtree(root / "original_sequences")
    elif how == "no masks":
        for folder in fakes.glob("*/masks_ssim"):
            shutil.rmtree(folder)
    elif how == "broken picture":
        write_damaged(fakes / "FaceSwap/c23/faces/054_071/0001.png", "truncated")
    elif how == "broken mask of val":
        write_damaged(fakes / "FaceSwap/masks_ssim/720_672/0001.png", "text")
    elif how == "full frames":
        write_crops(root / REAL / "071", frames=3, height=36, width=64)
    elif how == "nothing":
        shutil.rmtree(root)


@pytest.mark.parametrize("how, part", [
    ("no real videos", "no real c23 video to train on"),
    ("no masks", "python masks.py"),
    ("broken picture", "0001.png cannot be read as a picture"),
    ("broken mask of val", "0001.png cannot be read as a picture"),
    ("full frames", "071 holds full frames"),
    ("nothing", "github.com/ondyari/FaceForensics"),
])
def test_check_stops_wherever_training_would(masked_tree, check, capsys, how, part):
    """Design, 3: check and train.py use the same functions, so that one predicts the other."""
    def start_training():
        train, val = data.training_videos("ff++", masked_tree, "c23", "ssim")
        data.stop_if_broken(train + val, "ssim", 1)
    start_training()
    ruin(masked_tree, how)
    assert part in stopped(capsys, start_training)
    status, text = check(masked_tree)
    assert status == 2 and part in text
    assert "can start" not in text


def test_check_of_celeb_df_stops_where_testing_would(tmp_path, check):
    (tmp_path / "List_of_testing_videos.txt").write_text(CELEB_LIST)
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 2 and "no celeb-df-v2 face crops" in text
    crops = write_crops(tmp_path / "Celeb-real/faces/id0_0000")
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 0 and "testing can start" in text
    assert "missing: YouTube-real/00170 Celeb-synthesis/id0_id1_0000\n" in text
    write_damaged(crops / "0001.png", "empty")
    status, text = check(tmp_path, "celeb-df-v2")
    assert status == 2 and "0001.png cannot be read" in text


# ---------------------------------------------------------------- the demo, tests/demo_faces.py
def draw_demo(root):
    command = [sys.executable, str(ROOT / "tests" / "demo_faces.py"), str(root)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo, drawn once for all tests: about 20 s."""
    root = tmp_path_factory.mktemp("demo") / "tree"
    done = draw_demo(root)
    assert done.returncode == 0, done.stderr
    return root


def test_the_demo_is_complete_and_nobody_is_in_two_splits(demo):
    """Every video of its own lists in every quality, and each fake frame with its real one."""
    people = []
    for split in ("train", "val", "test"):
        for pair in json.loads((demo / "splits" / f"{split}.json").read_text()):
            people += pair
    assert len(people) == len(set(people)) >= 20
    splits = data.official_split("demo", demo)
    for quality in data.QUALITIES:
        for split in ("train", "val", "test"):
            videos = data.list_videos("demo", demo, quality, split)
            expected = {key for key, its_split in splits.items() if its_split == split}
            assert {(video.method, video.id) for video in videos} == expected
            frames = [frame for video in videos if video.label for frame in video.frames]
            assert all(data.twin_path(frame).is_file() for frame in frames)


def test_all_pictures_of_the_demo_are_png(demo):
    """Design, 2: c23 and c40 went through JPEG in memory."""
    files = [path for path in demo.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert {path.suffix for path in files} == {".png"}
    for path in files:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n", path


def test_demo_fakes_equal_their_real_twin_outside_one_forged_part(demo):
    """Bit for bit in c0: what changed is a spot of at most half the frame, and nothing else is."""
    for split in ("val", "test"):
        for video in data.list_videos("demo", demo, "c0", split):
            if not video.label:
                continue
            frame = video.frames[0]
            fake = np.asarray(Image.open(frame))
            real = np.asarray(Image.open(data.twin_path(frame)))
            changed = (fake != real).any(axis=2)
            rows, columns = np.nonzero(changed)
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)    # pixels around all that changed
            assert changed.mean() > 0.01, frame
            assert box < 0.5 * changed.size, frame
            assert changed.sum() > 0.4 * box, frame


def test_a_second_run_leaves_the_demo_alone(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert draw_demo(demo).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_demo_is_not_drawn_over_something_else(tmp_path, kind):
    root = tmp_path / "thesis"
    thesis = root if kind == "file" else root / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("all of it")
    done = draw_demo(root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and str(root) in done.stderr
    assert "Traceback" not in done.stderr
    assert thesis.read_text() == "all of it"


def whole_frame_statistics(path):
    """Colour means and deviations, two measures of sharpness: nothing that knows where things are.

    Returns (8,).
    """
    rgb = np.asarray(Image.open(path), dtype=np.float64)
    grey = rgb @ (0.299, 0.587, 0.114)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = around - 4 * grey[1:-1, 1:-1]
    gradient = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    sharpness = [np.log(laplacian.var() + 1), np.log(gradient)]
    return np.concatenate([rgb.mean((0, 1)), rgb.std((0, 1)), sharpness])


def logistic_regression(features, labels):
    """The weights (n + 1,) that tell label 1 from 0, both counting alike. Newton's method."""
    inputs = np.column_stack([np.ones(len(features)), features])
    share = labels.mean()
    importance = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        probs = 1 / (1 + np.exp(-inputs @ weights))
        curvature = importance * probs * (1 - probs)
        hessian = inputs.T @ (inputs * curvature[:, None]) + 1e-3 * np.eye(len(weights))
        gradient = inputs.T @ (importance * (probs - labels)) + 1e-3 * weights
        weights -= np.linalg.solve(hessian, gradient)
    return weights


def auc_of(labels, scores):
    """The share of pairs of a fake and a real frame in which the fake has the higher score."""
    fakes = scores[labels == 1]
    reals = scores[labels == 0]
    return (fakes[:, None] > reals[None, :]).mean()


@pytest.mark.parametrize("quality", data.QUALITIES)
def test_the_demo_is_no_giveaway(demo, quality):
    """Statistics of whole frames stay under 0.70 frame AUC on people who were not trained on."""
    features = {}
    labels = {}
    for split in ("train", "test"):
        paths = []
        labels[split] = []
        for video in data.list_videos("demo", demo, quality, split):
            frames = data.evenly_spread(video.frames, 3 if split == "train" else 100)
            paths += frames
            labels[split] += [video.label] * len(frames)
        features[split] = np.array([whole_frame_statistics(path) for path in paths])
        labels[split] = np.array(labels[split])
    mean = features["train"].mean(axis=0)
    deviation = features["train"].std(axis=0)
    weights = logistic_regression((features["train"] - mean) / deviation, labels["train"])
    auc = {}
    for split in ("train", "test"):
        scores = weights[0] + (features[split] - mean) / deviation @ weights[1:]
        auc[split] = auc_of(labels[split], scores)
    assert auc["train"] > 0.5                   # it does learn what little there is
    assert auc["test"] < 0.70, f"{quality}: {auc['test']:.3f}"
