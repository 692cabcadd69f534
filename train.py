"""
Training: segmentation first, then classification with segmentation frozen, then everything.

Read beside Sec. IV-B (schedule), III-C and III-D (losses), IV-A3 (pairs).
  paper                   code                  paper's value
  three steps             stages 1, 2, 3        146k, 16k, 324k iterations
  mini-batch              --batch-size          32 pairs (clean, degraded)
  poly policy             poly_lr               from 0.002, power 0.9
  lambda_li, _cls, _seg   --lambdas             1, 1, 1

    python train.py --data demo                                  a laptop, no downloads, minutes
    python train.py --data ff++ --quality c23 [--root DIR]       the paper
    torchrun --nproc_per_node=N train.py ...                     several GPUs

Writes runs/NAME/: last.pt (for --resume), best.pt (the best frame AUC on val), log.jsonl,
panel_*.png and, with matplotlib, curves.png. The demo is tested at the end and writes test.json.
"""

import os

# PyTorch's CPU threads spin while they wait for each other. When other programs are busy, this
# slows training several times. We let them spin for a fifteenth of the default. OpenMP reads the
# variable when torch is imported, so this line has to come first.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import argparse
import hashlib
import io
import json
import math
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm

import data
import evaluate
import masks
from losses import VARIANTS, classification_loss, run_branches, stage_plan, total_loss
from model import autocast, build_network, load_xception_weights, precision, to_input

# ---------------------------------------------------------------- Sec. IV-B: the settings
# READING Sec. IV-B: a mini-batch size of 32 means 32 pairs, so 64 images.
# READING Sec. IV-B: the paper names only SGD. Momentum and weight decay follow the authors'
# release. Layers without ImageNet weights start from PyTorch's default initialization.
# READING Sec. IV-B: the paper does not say which checkpoint it tests. We keep the one with the best
# frame AUC on val, validated every 30 epochs as in the release.
PAPER = dict(
    quality="c23",
    iterations=[146000, 16000, 324000],
    batch_size=32,
    width=1.0,                  # factor for the number of channels of every layer
    size=299,                   # pixels of a crop's side
    pretrained="imagenet",
    optimizer="sgd",
    momentum=0.9,
    weight_decay=5e-4,          # of all parameters
    lr=0.002,
    lambdas=[1.0, 1.0, 1.0],    # of L_li, L_cls and L_seg (Sec. III-E)
    aux=0.4,                    # of the loss on OCR's soft regions, see losses.total_loss
    eval_every=5400,
    val_frames=None,            # all frames of a val video
    save_every=1000,
)
# DEPARTURE Sec. IV-B: the demo trains for minutes on two cores, from random weights. The paper's
# schedule takes hours or days on a GPU and starts from ImageNet weights.
DEMO = dict(
    iterations=[600, 50, 350],  # most of them in stage 1, because the decision uses the map
    batch_size=16,
    width=0.125,                # 0.5 million parameters instead of 32.3 million
    size=107,                   # gives a map of 13 x 13
    pretrained="none",          # there are no ImageNet weights for so narrow a trunk
    optimizer="adamw",          # SGD learns nothing from random weights in so few steps
    eval_every=150,
    save_every=100,
)
LOG_EVERY = 20                  # iterations between two lines of log.jsonl


def poly_lr(step, max_steps, base_lr, power=0.9):
    """Sec. IV-B, "poly" policy: the learning rate at a step, 0 .. max_steps - 1 within one stage.

    READING Sec. IV-B: the paper names the policy and its power, but prints no formula. We use the
    usual one, and start anew in each stage as the authors' release does. The release stops at 1 %
    of the first rate instead; the usual policy goes to 0.
    """
    return base_lr * (1 - step / max_steps) ** power


# ---------------------------------------------------------------- Sec. IV-B: the three stages
def stage_iterations(settings):
    """Iterations of stages 1, 2, 3.

    READING Table I: the Xception baseline has one loss, so it has one stage. It gets as many
    iterations as LiSiam in total, so that the comparison is fair.
    READING Table VI: Model-C has no mask supervision. In stage 1 only L_li would train its map, and
    the easiest way to make two maps agree is to make both constant. Stage 2 would then train a head
    on that map. So Model-C gets all its iterations in stage 3, like any run without masks.
    """
    if needs_masks(settings):
        return settings["iterations"]
    return [0, 0, sum(settings["iterations"])]


def freeze(net, stage):
    """Sets what a stage trains: 1 segmentation, 2 classification, 3 everything. Returns parameters.

    READING Sec. IV-B: "freeze" can mean the weights alone, or everything. We also put frozen parts
    into eval mode, so that their BatchNorm statistics and dropout stand still and they end
    bit-identical. The release only clears requires_grad.
    """
    net.train().requires_grad_(True)
    frozen = []
    if stage == 1:
        frozen = [net.f_scu, net.f_mt, net.f_mlp]
    if stage == 2:
        frozen = [net.backbone, net.ocr, net.f_seg]             # f_cnn and f_seg
    for module in frozen:
        if module is not None:                                  # Model-F has no f_mt
            module.eval().requires_grad_(False)
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def make_optimizer(parameters, settings):
    """The optimizer of one stage.

    READING Sec. IV-B: momentum starts from zero, because each stage trains other parameters.
    DEPARTURE Table I: the paper trained the baseline "using the official code" of [3]. Ours gets
    LiSiam's optimizer, batch size, learning rate and number of iterations, for a fair comparison.
    """
    fused = settings["device"] == "cuda"        # on a GPU: one kernel a step instead of hundreds
    options = dict(lr=settings["lr"], weight_decay=settings["weight_decay"], fused=fused)
    if settings["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=settings["momentum"], **options)


def step_loss(net, batch, settings, stage):
    """One batch of data.TrainingPairs through the network: (loss, parts), see losses.total_loss."""
    device = settings["device"]
    clean = to_input(batch["clean"].to(device, non_blocking=True))          # I^1 (B, 3, 299, 299)
    degraded = to_input(batch["degraded"].to(device, non_blocking=True))    # I^2 (B, 3, 299, 299)
    mask = batch["mask"].to(device, non_blocking=True)                      # X_gt (B, 299, 299)
    labels = batch["label"].to(device, non_blocking=True)                   # alpha_gt (B,)
    if settings["model"] == "xception":
        # READING Table V: "+IQD" trains on degraded images alone. The rule is that of branch 2,
        # which leaves one image in eight as it is.
        with autocast(device):
            logits = net(degraded if settings["iqd"] else clean)
        loss = classification_loss(logits, labels)
        return loss, {"cls": loss}
    variant = VARIANTS[settings["variant"]]
    plan = stage_plan(variant, stage, settings["lambdas"], settings["aux"])
    if variant.joined:                                  # Model-G: one batch of 2B for branch 1
        clean = torch.cat([clean, degraded])
        labels = labels.repeat(2)
        mask = mask.repeat(2, 1, 1)
    with autocast(device):
        outputs = run_branches(net, plan, clean, degraded)
    return total_loss(outputs, labels, mask, variant, plan.lambdas, plan.aux)       # Eq. (19)


def mixed_seed(*numbers):
    """Several numbers -> one 32-bit seed, because PyTorch's CPU generator ignores higher bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# ---------------------------------------------------------------- Sec. IV-B: one loop
def main(argv=None):
    settings = parse_arguments(argv)
    rank, world = join_processes(settings)
    torch.manual_seed(settings["seed"])
    net = build_network(settings)
    pairs, val_videos = prepare_data(settings, rank, world)
    run = RunFolder(settings, pairs, rank)
    checkpoint = run.resume(net) if settings["resume"] else run.begin(net)
    iteration, best = checkpoint["iteration"], checkpoint["best"]
    net.to(settings["device"], memory_format=torch.channels_last)       # faster
    if world > 1 and settings["device"] == "cuda":
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    # Possible speed-ups on a GPU, not tried: torch.backends.cudnn.benchmark = True; and, after
    # torch._inductor.config.force_layout_optimization = True, net.compile(dynamic=False).

    end = 0
    bar = tqdm(total=sum(stage_iterations(settings)), initial=iteration, disable=rank > 0)
    for stage, steps in zip((1, 2, 3), stage_iterations(settings)):
        start = end
        end = start + steps
        if iteration >= end:                    # no such stage, or a resumed run is past it
            continue
        optimizer = make_optimizer(freeze(net, stage), settings)
        if iteration > start:                   # resumed within this stage
            optimizer.load_state_dict(checkpoint["optimizer"])
        parallel = parallel_network(net, settings, world)
        for batch in load_batches(pairs, settings, range(iteration, end), rank, world):
            # Dropout depends on (seed, iteration, process) alone, so --resume needs no state of it.
            torch.manual_seed(mixed_seed(settings["seed"], iteration, rank))
            rate = poly_lr(iteration - start, steps, settings["lr"])
            optimizer.param_groups[0]["lr"] = rate
            loss, parts = step_loss(parallel, batch, settings, stage)           # Eq. (19)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            iteration += 1
            bar.update()

            ends_stage = iteration == end
            # Stage 1 leaves the head untrained, so there is nothing to validate.
            validates = stage > 1 and (ends_stage or iteration % settings["eval_every"] == 0)
            # A resumed run must know what best.pt holds, so last.pt is saved with it.
            saves = ends_stage or validates or iteration % settings["save_every"] == 0
            if saves or iteration % LOG_EVERY == 0:
                log_step(run, bar, iteration, stage, rate, {"loss": loss, **parts}, net)
            if validates:
                best = validate(net, val_videos, run, iteration, stage, best, (rank, world))
            if ends_stage and rank == 0 and settings["model"] == "lisiam":
                panel(net, batch, settings, run.folder / f"panel_{iteration:06d}.png")
            if validates or ends_stage:
                freeze(net, stage)              # because they have set the network to eval mode
            if saves:
                run.save("last.pt", net, iteration, best=best, optimizer=optimizer.state_dict())
    bar.close()
    if world > 1:
        distributed.destroy_process_group()
    if rank == 0:
        finish(run, net, iteration)


# ---------------------------------------------------------------- Sec. IV-A3: batches
def load_batches(pairs, settings, iterations, rank, world):
    """This process's part of the batches of the given iterations, one after another.

    Batch i of a run holds the samples i B .. i B + B - 1, whoever loads them and however often the
    run was stopped, because data.TrainingPairs makes sample n from (seed, n) alone.
    """
    size = settings["batch_size"]
    local = size // world
    starts = (iteration * size + rank * local for iteration in iterations)
    return torch.utils.data.DataLoader(
        pairs, batch_sampler=(range(start, start + local) for start in starts),
        num_workers=settings["workers"], pin_memory=settings["device"] == "cuda",
        generator=torch.Generator())            # its own; torch's own is for dropout alone


def needs_masks(settings):
    """Whether any loss of a run looks at a mask."""
    if settings["model"] == "xception" or not VARIANTS[settings["variant"]].seg:
        return False
    _, _, lambda_seg = settings["lambdas"]
    return lambda_seg > 0 or settings["aux"] > 0


def list_split(settings, split):
    """The videos of a split: the real ones, and fakes of the methods that the run trains on."""
    chosen = settings["methods"]                # None: all that are there
    videos = data.list_videos(settings["data"], settings["root"], settings["quality"], split,
                              settings["mask"])
    return [video for video in videos if not video.label or not chosen or video.method in chosen]


def complete_data(settings, world):
    """Draws the demo and writes masks, if they are missing; stops if there are no videos."""
    name, root, mask = settings["data"], settings["root"], settings["mask"]
    if name == "demo" and not (Path(root) / "original_sequences").is_dir():
        draw = Path(__file__).parent / "tests" / "demo_faces.py"
        subprocess.run([sys.executable, draw, root], check=True)
    data.require_videos(name, root, settings["quality"], "train", mask)
    if not needs_masks(settings) or mask == "given":
        return
    videos = [video for split in data.SPLITS for video in list_split(settings, split)]
    if world > 1 and any(masks.missing_names(masks.best_pair(video), mask) for video in videos):
        sys.exit("masks are missing, and the other processes would wait too long for them; first "
                 f"run python masks.py --data {name} --root {root} --mask {mask}")
    masks.write_masks(videos, mask, settings["workers"] or 1)


def prepare_data(settings, rank, world):
    """(TrainingPairs, videos to validate on), after rank 0 has completed and checked the data."""
    if rank == 0:
        complete_data(settings, world)
    if world > 1:
        distributed.barrier()
    videos = data.training_videos(list_split(settings, "train"), needs_masks(settings))
    val_videos = list_split(settings, "val")
    if rank == 0:
        data.look_at_first_frames(videos + val_videos, settings["workers"])
        reals = sum(not video.label for video in videos)
        print(f"{reals} real and {len(videos) - reals} fake videos to train on, {len(val_videos)} "
              f"to validate on; {settings['device']}, {precision(settings['device'])}")
        if len({video.label for video in val_videos}) < 2:
            print("warning: without real and fake val videos, best.pt will hold the last weights")
    pairs = data.TrainingPairs(videos, settings["size"], settings["seed"], settings["num_classes"],
                               needs_masks(settings))
    return pairs, val_videos


# ---------------------------------------------------------------- several GPUs
def join_processes(settings):
    """(rank, world): which of how many processes this is. torchrun starts one for each GPU.

    READING Sec. IV-B: the paper does not say how many GPUs it used. The batch of 32 is split among
    the processes and the gradients are averaged. On CUDA, BatchNorm sees the whole batch. So
    several GPUs compute what one would, except for dropout, which each process draws for its own
    images. On gloo each process normalizes its own part. The log has the losses of rank 0.
    """
    if not distributed.is_torchelastic_launched():      # clusters set WORLD_SIZE for other reasons
        return 0, 1
    world = int(os.environ["WORLD_SIZE"])
    if settings["batch_size"] % world or settings["batch_size"] < 2 * world:
        sys.exit(f"--batch-size {settings['batch_size']} cannot be shared by {world} processes: "
                 "each needs the same number of pairs, at least 2")
    timeout = timedelta(minutes=30)             # the others wait while rank 0 checks the data
    if settings["device"] == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=timeout)
    return distributed.get_rank(), world


def parallel_network(net, settings, world):
    """The network itself, or PyTorch's wrapper that averages gradients over all processes."""
    if world == 1:
        return net
    return torch.nn.parallel.DistributedDataParallel(
        net, gradient_as_bucket_view=True,
        # If a loss is switched off, some parameters get no gradient.
        find_unused_parameters=0 in [*settings["lambdas"], settings["aux"]])


# ---------------------------------------------------------------- the folder of a run
# These may differ between a run and its --resume. Another device or another number of processes
# rounds differently and draws other dropout.
FREE_TO_CHANGE = ("root", "workers", "device", "out", "resume", "save_every")


class RunFolder:
    """runs/NAME with log.jsonl, last.pt and best.pt, which rank 0 writes.

    A run exists once last.pt of iteration 0 is written. If the start fails earlier, the same
    command can be used again. A run stops if another run has overwritten its last.pt, for example
    because a job was queued twice.
    """

    def __init__(self, settings, pairs, rank):
        self.settings = settings
        self.folder = Path(settings["out"])
        self.last = self.folder / "last.pt"
        self.writes = rank == 0
        # Another list of videos would change every draw of a resumed run.
        listed = [(video.key, [frame.name for frame, _ in pairs.samples[video.key]])
                  for video in pairs.videos]
        self.videos = hashlib.sha256(repr(listed).encode()).hexdigest()
        if self.writes and self.last.exists() and not settings["resume"]:
            sys.exit(f"{self.folder} already holds a run: add --resume, or use another --out")
        if settings["resume"] and not self.last.exists():
            sys.exit(f"there is nothing to resume: no {self.last}; name a run by --out")
        self.seen = self.time_of_last()

    def time_of_last(self):
        return self.last.stat().st_mtime_ns if self.last.exists() else None

    def begin(self, net):
        """Loads pretrained weights and writes an empty log and last.pt of iteration 0."""
        checkpoint = {"iteration": 0, "best": -1.0, "optimizer": None}
        if self.writes:
            # DistributedDataParallel copies the weights of rank 0 to the other processes.
            if self.settings["pretrained"] != "none":
                print(load_xception_weights(net, self.settings["pretrained"]))
            (self.folder / "best.pt").unlink(missing_ok=True)   # an older run's
            data.write_whole(self.folder / "log.jsonl", b"")
        self.save("last.pt", net, **checkpoint)
        return checkpoint

    def resume(self, net):
        """Loads last.pt if settings and videos are the same; forgets later lines of the log."""
        checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
        then = checkpoint["settings"]
        for name, value in self.settings.items():
            if name not in FREE_TO_CHANGE and value != then.get(name):
                sys.exit(f"{self.last} was trained with {name} = {then.get(name)}, not {value}; "
                         "resume with the run's own, or use another --out")
        if self.videos != checkpoint["videos"]:
            sys.exit(f"the training videos or their masks differ from those of {self.last}; "
                     "restore them, or start a new run with another --out")
        net.load_state_dict(checkpoint["model"])
        if self.writes:
            lines = (self.folder / "log.jsonl").read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n")       # a kill may tear the last
                    and json.loads(line)["iteration"] <= checkpoint["iteration"]]
            data.write_whole(self.folder / "log.jsonl", "".join(kept).encode())
        return checkpoint

    def log(self, line):
        if self.writes:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self, name, net, iteration, **more):
        if not self.writes:
            return
        if self.time_of_last() != self.seen:
            sys.exit(f"another run has written {self.last}, so this one stops; each run needs its "
                     "own --out")
        buffer = io.BytesIO()
        torch.save({"model": net.state_dict(), "iteration": iteration, "settings": self.settings,
                    "videos": self.videos, **more}, buffer)
        data.write_whole(self.folder / name, buffer.getvalue())
        self.seen = self.time_of_last()


# ---------------------------------------------------------------- now and then: log, validate, draw
def log_step(run, bar, iteration, stage, rate, losses, net):
    """A line of log.jsonl. Stops if the loss, a weight or a BatchNorm statistic is not finite."""
    # item() waits for the GPU. The loop does so only here, and where it validates or saves.
    losses = {name: loss.item() for name, loss in losses.items()}
    tensors = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
    norm = torch.nn.utils.get_total_norm(tensors).item()
    if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
        sys.exit(f"iteration {iteration}: the loss is {losses['loss']}, the norm of all weights "
                 f"{norm}; {run.last} holds an earlier iteration. Try a lower --lr")
    shown = {name: f"{loss:.3f}" for name, loss in losses.items()}
    bar.set_postfix({"stage": stage, **shown})
    now = round(time.time(), 1)
    run.log({"iteration": iteration, "stage": stage, "lr": rate, **losses, "time": now})


def validate(net, videos, run, iteration, stage, best, share):
    """Frame AUC on val; best.pt if it is at least the highest so far. Returns the highest.

    On a tie the later weights win, because they trained longer. best.pt also keeps the threshold at
    which the map fitted the val masks best. Every process tests its share of the frames. The
    BatchNorm statistics of rank 0 are sent to all first, because on gloo each process has its own.
    """
    if len({video.label for video in videos}) < 2:
        return best
    rank, world = share
    if world > 1:
        for statistics in net.buffers():
            distributed.broadcast(statistics, src=0)
    tested = evaluate.Run("validation", net, trained=run.settings, call=run.settings)
    test = evaluate.TestSet("validation", run.settings["data"], run.settings["quality"], videos,
                            run.settings["val_frames"])
    found = evaluate.predict(tested, test, share=share)
    if world > 1:
        found = gather(found, world)
    row = evaluate.summarize(found, videos)
    run.log({"iteration": iteration, "stage": stage, "val": row})
    if rank == 0:
        tqdm.write(f"iteration {iteration}, stage {stage}: val frame AUC {row['frame_auc']:.3f}, "
                   f"video AUC {row['video_auc']:.3f}, IoU {evaluate.show(row['iou'])}")
    if row["frame_auc"] < best:
        return best
    run.save("best.pt", net, iteration, threshold=evaluate.best_threshold(row))
    return row["frame_auc"]


def gather(found, world):
    """What all processes have found in their shares -> the same for all frames, in order."""
    parts = [None] * world
    distributed.all_gather_object(parts, found)
    order = np.argsort(np.concatenate([part["index"] for part in parts]))
    joined = {"counts": sum(part["counts"] for part in parts)}
    for name in found.keys() - {"counts", "names"}:             # summarize reads no names
        joined[name] = np.concatenate([part[name] for part in parts])[order]
    return joined


def panel(net, batch, settings, path):
    """A PNG of what training sees: four fakes and two real faces of a batch. White = fake."""
    labels = batch["label"].numpy()
    net.eval()
    run = evaluate.Run("", net, trained=settings, call=settings)
    rows = {}
    for k in [*np.flatnonzero(labels)[:4], *np.flatnonzero(labels == 0)[:2]]:
        clean, degraded = batch["clean"][k].numpy(), batch["degraded"][k].numpy()
        rows[f"{k}: {'fake' if labels[k] else 'real'}"] = {
            "clean": clean, "degraded": degraded, "mask": batch["mask"][k].numpy(),
            "map of clean": evaluate.judge(run, clean)[1],
            "map of degraded": evaluate.judge(run, degraded)[1]}
    evaluate.draw_grid(f"training batch, {path.stem}", rows, path)


def curves(folder):
    """curves.png from log.jsonl: the losses through the stages, and what validation gave."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = evaluate.matplotlib_figure(12, 4)
    if figure is None:
        return
    left, right = figure.subplots(1, 2)
    steps = [line for line in lines if "loss" in line]
    others = ("iteration", "stage", "lr", "time")
    for name in dict.fromkeys(name for line in steps for name in line if name not in others):
        points = [(line["iteration"], line[name]) for line in steps if name in line]
        left.plot(*zip(*points), ".", markersize=3, label=name)
    checks = [line for line in lines if "val" in line]
    for name in ("frame_auc", "video_auc", "iou"):
        right.plot([line["iteration"] for line in checks],
                   [line["val"][name] for line in checks], label=name)
    left.set(title="training losses", xlabel="iteration", yscale="log")
    right.set(title="validation", xlabel="iteration", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend()
    evaluate.save_figure(figure, folder / "curves.png")


def finish(run, net, iteration):
    """Training curves, and the demo's test; for FF++ the command that tests it."""
    settings = run.settings
    if not (run.folder / "best.pt").exists():   # never validated
        run.save("best.pt", net, iteration)
    curves(run.folder)
    if settings["data"] != "demo":
        print(f"done; test it: python evaluate.py --checkpoint {run.folder / 'best.pt'} --data "
              f"{settings['data']} --root {settings['root']} --quality {settings['quality']}")
        return
    tests = []
    for quality in data.QUALITIES:
        videos = data.list_videos("demo", settings["root"], quality, "test", settings["mask"])
        tests.append(evaluate.TestSet(f"demo {quality} test", "demo", quality, videos, None))
    tested = evaluate.load_run(run.folder / "best.pt", call=settings)
    results = [result for _, result, _ in evaluate.test_run(tested, tests)]
    print(f"\n{evaluate.result_tables(results)}\n\nPictures of the training: {run.folder}/*.png")
    report = [{"settings": tested.trained, "results": results}]
    data.write_whole(run.folder / "test.json", json.dumps(report, indent=1).encode())


# ---------------------------------------------------------------- command line
def parse_arguments(argv=None):
    """Command line -> settings: a flag's value, else DEMO's with --data demo, else PAPER's."""
    parser = argparse.ArgumentParser(description="Train LiSiam in three stages (Sec. IV-B).")
    flag = parser.add_argument
    flag("--data", choices=data.TRAINABLE, required=True, help="FF++ face crops, or made-up ones")
    flag("--root", help="folder of the data set, default datasets/...")
    flag("--quality", choices=data.QUALITIES, help="FF++ compression (Sec. IV-A1)")
    flag("--model", choices=["lisiam", "xception"], default="lisiam", help="default lisiam")
    flag("--variant", choices=list(VARIANTS), default="A", help="Table VI, default A = LiSiam")
    flag("--iqd", action="store_true", help="degrade the baseline's input (Table V)")
    kinds = [*masks.MASKS, "given"]             # given: a benchmark's own
    flag("--mask", choices=kinds, help="X_gt (Table VII), default ssim")
    flag("--methods", nargs="+", choices=data.METHODS, help="fakes to train on, default all")
    flag("--num-classes", type=int, choices=[2, 5], default=2, help="default 2; 5 as in Fig. 5")
    flag("--seed", type=int, default=0, help="default %(default)s")
    flag("--workers", type=int, default=min(8, os.cpu_count()), help="loading processes")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flag("--device", choices=["cpu", "cuda"], default=device, help="default %(default)s")
    flag("--out", help="folder of the run, default runs/NAME by settings")
    flag("--resume", action="store_true", help="go on from last.pt in the folder of the run")
    # Entries of PAPER and DEMO, where their defaults stand.
    flag("--iterations", type=int, nargs=3, metavar=("SEG", "CLS", "ALL"), help="of the stages")
    flag("--batch-size", type=int, help="pairs, over all processes")
    flag("--lr", type=float, help="learning rate at the start of a stage")
    flag("--lambdas", type=float, nargs=3, metavar=("LI", "CLS", "SEG"), help="Eq. (19)")
    flag("--aux", type=float, help="weight of OCR's soft-region loss [39]; 0: off")
    flag("--pretrained", metavar="imagenet|FILE|none", help="Xception weights to start from")
    flag("--width", type=float, help="factor for the number of channels")
    flag("--size", type=int, help="pixels of a crop's side, at least 23")
    flag("--eval-every", type=int, help="iterations between validations, from stage 2 on")
    flag("--save-every", type=int, help="iterations between two last.pt")
    flag("--val-frames", type=int, help="use at most this many frames of each val video")
    settings = vars(parser.parse_args(argv))
    of_lisiam = settings["lambdas"] or settings["aux"] is not None or settings["variant"] != "A"
    if settings["model"] == "xception" and (of_lisiam or settings["mask"]):
        parser.error("--variant, --mask, --lambdas and --aux are LiSiam's; the baseline has one "
                     "loss and no map")
    if settings["model"] == "lisiam" and settings["iqd"]:
        parser.error("--iqd is for --model xception; LiSiam has a degraded branch already")
    defaults = {**PAPER, **DEMO} if settings["data"] == "demo" else PAPER
    for name, value in defaults.items():
        if settings.get(name) is None:
            settings[name] = value
    if settings["methods"]:                     # in one order, and None if it is all of them
        chosen = [method for method in data.METHODS if method in settings["methods"]]
        settings["methods"] = chosen if len(chosen) < len(data.METHODS) else None
    if settings["model"] == "lisiam":           # the baseline has no map
        settings["mask"] = settings["mask"] or "ssim"
    settings["transformer"] = VARIANTS[settings["variant"]].transformer
    settings["root"] = settings["root"] or data.ROOTS[settings["data"]]
    settings["out"] = settings["out"] or f"runs/{run_name(settings)}"
    check_settings(settings, parser.error)
    return settings


def run_name(settings):
    """The run's name, such as ff++-c40-lisiam-G-seed1. Runs with other numbers need an --out."""
    names = [settings["data"], settings["quality"], settings["model"]]
    others = {
        "5classes": settings["num_classes"] == 5,
        settings["variant"]: settings["variant"] != "A",
        "iqd": settings["iqd"],
        settings["mask"]: settings["mask"] not in ("ssim", None),
        "-".join(settings["methods"] or []): settings["methods"],
        f"seed{settings['seed']}": settings["seed"] != 0,
    }
    names += [name for name, differs in others.items() if differs]
    return "demo" if names == ["demo", "c23", "lisiam"] else "-".join(names)


def check_settings(settings, error):
    """Calls error with a sentence if a number or a combination of flags makes no sense."""
    lowest = dict(seed=0, workers=0, batch_size=2, size=23, eval_every=1, save_every=1,
                  val_frames=1)
    for name, least in lowest.items():
        if settings[name] is not None and settings[name] < least:
            error(f"--{name.replace('_', '-')} must be at least {least}")
    if not all(0 <= weight < math.inf for weight in [*settings["lambdas"], settings["aux"]]):
        error("--lambdas and --aux must be numbers from 0 on; 0 leaves a loss out")
    if not (settings["lr"] > 0 and settings["width"] > 0):
        error("--lr and --width must be above 0")
    source = settings["pretrained"]
    if source != "none" and settings["width"] != 1:
        error("pretrained weights exist for --width 1 only; add --pretrained none")
    if source not in ("none", "imagenet") and not Path(source).is_file():
        error(f"there is no file {source}; --pretrained takes imagenet, none or a file")
    if settings["num_classes"] == 5 and settings["methods"]:
        error("--num-classes 5 needs all four methods")
    iterations = stage_iterations(settings)
    if min(settings["iterations"]) < 0 or sum(iterations) == 0:
        error("--iterations must not be negative, and not all 0")
    lambda_li, lambda_cls, _ = settings["lambdas"]              # all 1 for the baseline
    if iterations[1] and lambda_cls == 0:
        error("stage 2 uses only L_cls: give it a weight in --lambdas, or the stage 0 --iterations")
    has_li = VARIANTS[settings["variant"]].li and lambda_li > 0
    if not (needs_masks(settings) or has_li or lambda_cls > 0):
        error("these --lambdas and --aux leave no loss to train with")


if __name__ == "__main__":
    main()
