"""train.py beside Sec. IV-B: the three stages, the schedule, and a run that can be killed and gone on with."""

import datetime
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import data
import masks
import train
from evaluate import build_network
from losses import VARIANTS, total_loss
from model import LiSiam

SMALL = ["--data", "ff++", "--width", "0.02", "--size", "48", "--batch-size", "4", "--pretrained", "none", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def masked_tree(tiny_tree):
    masks.write_masks("ff++", tiny_tree, "ssim", workers=1)
    return tiny_tree


def run(tree, out, iterations, *flags):
    train.main([*SMALL, "--root", str(tree), "--out", str(out), "--iterations", *map(str, iterations), *flags])
    return torch.load(out / "last.pt", weights_only=True)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- Sec. IV-B
def test_poly_rate_by_hand_and_its_end():
    """Sec. IV-B: 0.002 (1 - step / steps)^0.9; half way it is 0.002 * 0.5^0.9 = 0.0010718."""
    assert train.poly_lr(0, 100, 0.002) == 0.002
    assert train.poly_lr(50, 100, 0.002) == pytest.approx(0.00107177, rel=1e-5)
    assert 0 < train.poly_lr(99, 100, 0.002) < 0.002 * 0.016


def test_poly_restarts_in_each_stage(masked_tree, tmp_path):
    run(masked_tree, tmp_path / "run", (2, 2, 2), "--save-every", "1", "--lr", "0.002")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    rates = {line["iteration"]: line["lr"] for line in lines if "lr" in line}
    half = pytest.approx(0.002 * 0.5 ** 0.9)
    assert rates == {1: 0.002, 2: half, 3: 0.002, 4: half, 5: 0.002, 6: half}
    terms = {line["stage"]: sorted(set(line) & {"li", "cls", "seg", "aux"}) for line in lines if "lr" in line}
    assert terms == {1: ["aux", "li", "seg"], 2: ["cls"], 3: ["aux", "cls", "li", "seg"]}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_parts_are_bit_identical_afterwards_batchnorm_statistics_included(stage, masked_tree, tmp_path):
    """Sec. IV-B: stage 1 leaves f_scu, f_mt and f_mlp alone, stage 2 f_cnn and f_seg; everything else moves."""
    after = run(masked_tree, tmp_path / "run", [3 * (s == stage) for s in (1, 2, 3)])["model"]
    torch.manual_seed(0)
    before = LiSiam(0.02).state_dict()
    classification = ("f_scu.", "f_mt.", "f_mlp.")
    for name in before:
        frozen = (stage == 1 and name.startswith(classification)) or (stage == 2 and not name.startswith(classification))
        if frozen:
            assert torch.equal(before[name], after[name]), name
        elif name.endswith(("running_mean", "weight")):
            assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_its_branches_and_heads_in_each_stage_and_validates(variant, masked_tree, tmp_path, capsys, monkeypatch):
    """Table VI, Sec. IV-B, in train.py's own loop: which images of a step go in, c(lean), d(egraded), b(oth); capital: the head runs."""
    inputs, ran, to_input, branch = [], [], data.to_input, LiSiam.branch

    def note_input(images):
        inputs.append(to_input(images))
        return inputs[-1]

    def note_branch(net, images, head):
        if net.training:                                                     # not validation, not the panel
            clean, degraded = inputs[-2:]
            which = "c" if images is clean else "d" if images is degraded else "b"
            assert which != "b" or torch.equal(images, torch.cat([clean, degraded]))
            ran.append(which.upper() if head else which)
        return branch(net, images, head)

    monkeypatch.setattr(data, "to_input", note_input)
    monkeypatch.setattr(LiSiam, "branch", note_branch)
    checkpoint = run(masked_tree, tmp_path / "run", (1, 1, 1), "--variant", variant, "--eval-every", "1")
    assert checkpoint["iteration"] == (2 if variant == "C" else 3)          # Model-C skips stage 1
    assert "".join(ran) == {"A": "cd" "C" "Cd", "B": "cd" "CD" "CD", "C": "C" "Cd", "D": "cd" "D" "cD", "E": "d" "D" "D",
                            "F": "cd" "C" "Cd", "G": "b" "B" "B"}[variant]
    settings = torch.load(tmp_path / "run/best.pt", weights_only=True)["settings"]
    assert (build_network(settings).f_mt is None) == (variant == "F")
    assert "val frame AUC" in capsys.readouterr().out
    assert list((tmp_path / "run").glob("panel_*.png"))


@pytest.mark.parametrize("flags", [["--model", "xception"], ["--model", "xception", "--iqd"], ["--num-classes", "5", "--augment"]])
def test_the_baseline_and_five_classes_train_as_many_steps(flags, masked_tree, tmp_path):
    checkpoint = run(masked_tree, tmp_path / "run", (1, 1, 2), *flags)
    assert checkpoint["iteration"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    if "xception" in flags:
        assert {line["stage"] for line in lines} == {3} and "seg" not in lines[0]


def test_best_is_the_highest_val_auc_and_without_val_videos_the_last_weights(masked_tree, tmp_path, capsys):
    run(masked_tree, tmp_path / "with", (0, 2, 3), "--eval-every", "1")
    lines = [json.loads(line) for line in (tmp_path / "with/log.jsonl").read_text().splitlines()]
    scores = {line["iteration"]: line["val"]["frame_auc"] for line in lines if "val" in line}
    best = torch.load(tmp_path / "with/best.pt", weights_only=True)
    assert len(scores) == 5 and best["iteration"] == min(k for k in scores if scores[k] == max(scores.values()))
    for pair in data.FFPP_PAIRS["val"].split()[:1]:
        for id in pair.split("_"):
            for frame in (masked_tree / "original_sequences/youtube/c23/faces" / id).iterdir():
                frame.unlink()
    last = run(masked_tree, tmp_path / "without", (0, 1, 1))
    assert "best.pt will hold the last weights" in capsys.readouterr().out
    assert equal(last["model"], torch.load(tmp_path / "without/best.pt", weights_only=True)["model"])


# ---------------------------------------------------------------- a user's mistakes
def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    sentence = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert stop.value.code == 2
    return sentence


def test_without_data_one_sentence_says_how_to_get_it_where_it_looked_and_what_needs_nothing(tmp_path):
    done = subprocess.run([sys.executable, "train.py", "--data", "ff++", "--quality", "c23", "--root", str(tmp_path / "none")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    for part in (str(tmp_path / "none"), "github.com/ondyari/FaceForensics", "data.py faces", "--data demo"):
        assert part in done.stderr


def test_resume_with_other_settings_is_refused_by_name(masked_tree, tmp_path, capsys):
    out = tmp_path / "run"
    run(masked_tree, out, (1, 1, 1))
    again = [*SMALL, "--root", masked_tree, "--out", out, "--iterations", 1, 1, 1]
    assert "already holds a run" in stopped(capsys, *again)
    assert "lr = 0.002, not 0.1" in stopped(capsys, *again, "--resume", "--lr", "0.1")
    assert "nothing to resume" in stopped(capsys, *again, "--resume", "--out", tmp_path / "other")
    (out / "last.pt").write_bytes(b"torn")
    assert "not a checkpoint" in stopped(capsys, *again, "--resume")


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(masked_tree, tmp_path, capsys):
    out = tmp_path / "run"
    sentence = stopped(capsys, *SMALL, "--root", masked_tree, "--out", out, "--iterations", 30, 0, 0, "--lr", "1e18", "--save-every", "1")
    assert "became" in sentence and "lower --lr" in sentence
    kept = torch.load(out / "last.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())


def test_missing_masks_and_iqd_without_the_baseline_are_said(tiny_tree, tmp_path, capsys):
    assert "--iqd" in stopped(capsys, *SMALL, "--root", tiny_tree, "--iqd")
    assert "nothing to train" in stopped(capsys, *SMALL, "--root", tiny_tree, "--out", tmp_path / "n", "--lambdas", 1, 0, 1)
    assert "without masks" in stopped(capsys, *SMALL, "--root", tiny_tree, "--out", tmp_path / "r", "--mask", "given")


@pytest.mark.parametrize("flags", ["1 0 1 --iterations 2 0 2", "0 1 0 --iterations 2 2 2", "0 1 0 --aux 0 --variant F --iterations 0 2 2"])
def test_weights_that_leave_a_part_without_gradients_are_refused_to_several_processes(flags, tmp_path, capsys, monkeypatch):
    """DistributedDataParallel waits for a gradient of every part that trains, and would stop at the second step."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without gradients" in stopped(capsys, *SMALL, "--root", tmp_path, "--lambdas", *flags.split())


def test_broken_pictures_are_named_once_and_over_one_percent_stop_the_run(masked_tree, tmp_path, capsys):
    for method in data.METHODS:
        (masked_tree / f"manipulated_sequences/{method}/c23/faces/071_054/0001.png").write_bytes(b"")
    out = tmp_path / "run"
    sentence = stopped(capsys, *SMALL, "--root", masked_tree, "--out", out, "--iterations", 90, 0, 0, "--batch-size", "8")
    assert "over 1 %" in sentence and "data.py check" in sentence
    run(masked_tree, tmp_path / "short", (2, 0, 0))                # a few are replaced, and training goes on


# ---------------------------------------------------------------- kill and resume
def test_a_run_killed_three_times_ends_bit_identical_to_an_unbroken_one(masked_tree, tmp_path):
    """kill -9 wherever it is, go on, with another number of loading processes: same weights, same optimizer, one log line each."""
    iterations = (25, 10, 25)
    whole = run(masked_tree, tmp_path / "whole", iterations, "--save-every", "3")
    out = tmp_path / "killed"
    command = [sys.executable, "train.py", *SMALL, "--root", str(masked_tree), "--out", str(out), "--save-every", "3", "--iterations",
               *map(str, iterations)]
    chance = random.Random(0)
    for attempt in range(3):
        flags = ["--workers", "1" if attempt == 1 else "0"] + ["--resume"] * (attempt > 0)
        process = subprocess.Popen(command + flags, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        saves, seen = chance.randint(1, 4), None                    # kill a moment after that many saves
        deadline = time.time() + 60
        while saves and process.poll() is None and time.time() < deadline:
            stamp = (out / "last.pt").stat().st_mtime_ns if (out / "last.pt").exists() else None
            saves, seen = saves - (stamp != seen and stamp is not None), stamp
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        assert process.poll() is None, "the process ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        torch.load(out / "last.pt", weights_only=True)              # never torn
    train.main([*command[2:], "--resume"])
    resumed = torch.load(out / "last.pt", weights_only=True)
    assert resumed["iteration"] == whole["iteration"] == 60 and equal(whole["model"], resumed["model"])
    momentum = [[state["momentum_buffer"] for state in checkpoint["optimizer"]["state"].values()] for checkpoint in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*momentum))
    logged = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (tmp_path / "whole", out)]
    assert [[{k: v for k, v in line.items() if k != "time"} for line in log] for log in logged][0] == \
        [{k: v for k, v in line.items() if k != "time"} for line in logged[1]]


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_ends_with_a_sentence(tmp_path, capsys):
    path = tmp_path / "last.pt"
    train.save(path, {"model": torch.ones(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))    # no file may grow past 1,000 bytes
    try:
        with pytest.raises(SystemExit) as stop:
            train.save(path, {"model": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stop.value.code == 2 and "--resume" in capsys.readouterr().err
    assert torch.equal(torch.load(path, weights_only=True)["model"], torch.ones(10))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# ---------------------------------------------------------------- bfloat16
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_bfloat16_agrees_with_float32_gradients_included(device):
    """Same weights, same batch, BatchNorm's statistics fixed: the loss within 0.1 %, all gradients together within 11 degrees."""
    torch.manual_seed(0)
    net = LiSiam(0.125).to(device).eval()
    batch = [torch.randn(4, 3, 48, 48, device=device), torch.randn(4, 3, 48, 48, device=device),
             torch.tensor([0, 1, 1, 0], device=device), torch.randint(0, 2, (4, 48, 48), device=device)]
    results = []
    for bfloat16 in (False, True):
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            branches = dict(zip((1, 2), net(*batch[:2])))
        loss, parts = total_loss(branches, *batch[2:])
        assert all(part.dtype == torch.float32 for part in parts.values())
        assert branches[1].seg_logits.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    (loss32, grad32), (loss16, grad16) = results
    assert loss16 == pytest.approx(loss32, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(grad32, grad16, dim=0) > 0.98


# ---------------------------------------------------------------- several processes
def test_the_draws_of_all_processes_together_are_those_of_one():
    for world in (2, 4):
        together = [n for rank in range(world) for n in train.batch_draws(7, 8, rank, world)]
        assert together == list(train.batch_draws(7, 8)) == list(range(56, 64))


def gradients(net, images, degraded, labels, mask):
    branches = dict(zip((1, 2), net(images, degraded)))
    loss, _ = total_loss(branches, labels, mask)
    loss.backward()
    return loss.detach()


def half_of_the_batch(rank, folder):
    """One of two gloo processes: half of the batch through DistributedDataParallel, BatchNorm in eval mode."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                                         timeout=datetime.timedelta(seconds=60))
    torch.set_num_threads(1)
    saved = torch.load(folder / "batch.pt", weights_only=True)
    net = LiSiam(0.02)
    net.load_state_dict(saved.pop("model"))
    parallel = torch.nn.parallel.DistributedDataParallel(net.eval())
    loss = gradients(parallel, *(saved[name][rank * 2:rank * 2 + 2] for name in ("images", "degraded", "labels", "mask")))
    torch.distributed.all_reduce(loss)
    if rank == 0:
        torch.save({"loss": loss / 2, **{name: p.grad for name, p in net.named_parameters()}}, folder / "grads.pt")
    torch.distributed.barrier()                                     # nobody leaves while the other still talks
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    torch.manual_seed(0)
    net = LiSiam(0.02).eval()
    batch = {"images": torch.randn(4, 3, 48, 48), "degraded": torch.randn(4, 3, 48, 48), "labels": torch.tensor([0, 1, 1, 0]),
             "mask": torch.randint(0, 2, (4, 48, 48))}
    torch.save({"model": net.state_dict(), **batch}, tmp_path / "batch.pt")
    loss = gradients(net, *batch.values())
    torch.multiprocessing.spawn(half_of_the_batch, (tmp_path,), nprocs=2)
    together = torch.load(tmp_path / "grads.pt", weights_only=True)
    torch.testing.assert_close(together.pop("loss"), loss, rtol=1e-5, atol=1e-5)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_torchrun_with_two_processes_trains_all_stages_and_writes_one_run(masked_tree, tmp_path):
    out, script = tmp_path / "run", tmp_path / "both.py"
    script.write_text(f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nimport torch, train\n"              # train.py, then its weights
                      "kept, make = [], train.make_optimizer\n"
                      "train.make_optimizer = lambda parameters, *rest: kept.append(parameters) or make(parameters, *rest)\n"
                      "train.main(sys.argv[2:])\n"
                      "torch.save([p.detach() for p in kept[-1]], f\"{sys.argv[1]}/rank{os.environ['RANK']}.pt\")\n")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(tmp_path),
                           *SMALL, "--root", str(masked_tree), "--out", str(out), "--iterations", "2", "2", "2", "--save-every", "1"],
                          cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(out / "last.pt", weights_only=True)["iteration"] == 6
    logged = [json.loads(line)["iteration"] for line in (out / "log.jsonl").read_text().splitlines() if "lr" in line]
    assert logged == [1, 2, 3, 4, 5, 6]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first and all(torch.equal(a, b) for a, b in zip(first, second))        # every gradient was averaged over both


@pytest.mark.parametrize("flags, part", [
    ("--save-every 0", "--save-every"), ("--eval-every 0", "--eval-every"), ("--val-frames -1", "--val-frames"), ("--workers -1", "--workers"),
    ("--lr -1", "--lr"), ("--lambdas -1 1 1", "--lambdas"), ("--aux nan", "--aux"), ("--width 0", "--width"), ("--iqd", "--iqd"),
    ("--model xception --variant C", "--variant"), ("--seed -1", "--seed"),
    pytest.param("--device cuda", "no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"))])
def test_numbers_that_make_no_sense_are_refused_before_anything_starts(flags, part, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse_arguments(["--data", "ff++", *flags.split()])
    sentence = capsys.readouterr().err
    assert stop.value.code == 2 and part in sentence and len(sentence.splitlines()) == 1


def test_resume_forgets_a_torn_line_of_the_log(masked_tree, tmp_path):
    run(masked_tree, tmp_path / "run", (1, 1, 2))
    log = tmp_path / "run" / "log.jsonl"
    before = log.read_text()
    log.write_text(before + '{"iteration": 3, "sta')
    run(masked_tree, tmp_path / "run", (1, 1, 2), "--resume")
    assert log.read_text() == before


def test_a_validation_without_one_readable_real_frame_has_no_auc_and_does_not_end_the_run(masked_tree, tmp_path, capsys):
    for video in data.list_videos("ff++", masked_tree, "c23", "val"):
        for path in video.frames.values():
            if not video.label:
                path.write_bytes(b"")
    run(masked_tree, tmp_path / "run", (1, 1, 1))
    assert "val frame AUC n/a" in capsys.readouterr().out and (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize("arguments, same", [
    ("--data ff++", True), ("--data ff++ --quality c40 --variant F --seed 3 --pretrained xception-43020ad28.pth --val-frames 2", True),
    ("--data demo", False),
    ("--data ff++ --iterations 10 10 10", False), ("--data ff++ --width 0.5", False), ("--data ff++ --pretrained none", False),
    ("--data ff++ --pretrained ffpp_c23_detector.pth", False),
    ("--data ff++ --aux 0", False), ("--data ff++ --num-classes 5", False), ("--data ff++ --augment", False)])
def test_a_run_knows_whether_it_was_trained_as_published(arguments, same):
    """Sec. IV-B; evaluate.py prints the paper's numbers beside no other run's."""
    assert train.parse_arguments(arguments.split())["as_published"] is same
