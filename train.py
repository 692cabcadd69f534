"""
Training: segmentation first, then classification with segmentation frozen, then everything.

Read beside Sec. IV-B (schedule), III-C and III-D (losses), IV-A3 (pairs).
  paper                   code                  paper's value
  three steps             stages 1, 2, 3        146k, 16k, 324k iterations
  mini-batch              --batch-size          32 pairs (clean, degraded)
  poly policy             poly_lr               0.002 (1 - step / steps)^0.9, anew in each stage
  lambda_li, _cls, _seg   --lambdas             1, 1, 1

    python train.py --data demo                                  a laptop, no downloads, minutes
    python train.py --data ff++ --quality c23 [--root DIR]       the paper
    torchrun --nproc_per_node=N train.py ...                     several GPUs

Writes runs/NAME/: last.pt (for --resume), best.pt (best frame AUC on val), log.jsonl, panel_*.png,
curves.png; the demo also test.json.
"""

import signal

if __name__ == "__main__":          # Ctrl-C while torch loads ends in no traceback; see data.run
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os

# PyTorch's threads spin while they wait for each other: beside another busy program ten times as
# slow on two cores. On Linux: to spin a tenth as long costs nothing on a quiet machine.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

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
from model import autocast, build_network, load_network, load_xception_weights, precision, to_input

# ---------------------------------------------------------------- Sec. IV-B: the settings
# READING Sec. IV-B: a mini-batch of 32 is 32 pairs, so 64 images. SGD alone is named: momentum and
# weight decay are the authors' release's, as is PyTorch's own start of what ImageNet does not give.
# READING Sec. IV-B: which weights count is not said: those of the best val AUC, looked at every 30
# epochs as in the release.
PAPER = dict(
    quality="c23",
    iterations=[146000, 16000, 324000],
    batch_size=32,
    width=1.0,                  # channel factor of every layer
    size=299,                   # pixels of a crop's side
    pretrained="imagenet",
    optimizer="sgd",
    momentum=0.9,
    weight_decay=5e-4,          # of all parameters
    lr=0.002,
    lambdas=[1.0, 1.0, 1.0],    # L_li, L_cls, L_seg
    li_in_stage_1=1.0,          # times lambda_li
    warm_up=0,                  # first steps of stage 3, in which the rate rises to the policy's
    aux=0.4,                    # OCR's soft regions, see losses.total_loss
    eval_every=5400,
    val_frames=None,            # all
    save_every=1000,
)
# DEPARTURE Sec. IV-B: minutes on two cores from random weights, not days on a GPU from ImageNet's.
DEMO = dict(
    iterations=[800, 50, 450],  # most for the map, without which there is nothing to decide by
    batch_size=16,
    width=0.125,                # 0.5 million parameters, not 32.3
    size=107,                   # leaves a 13 x 13 map
    pretrained="none",          # no ImageNet weights exist for a narrow trunk
    optimizer="adamw",          # SGD from random weights learns nothing in so few steps
    lambdas=[0.3, 1.0, 1.0],    # L_li at 1 shrinks the map, which takes longer to come back
    li_in_stage_1=0.0,          # from random weights two maps agree most easily if constant
    warm_up=100,                # AdamW's first full steps would shake the map
    eval_every=150,
    save_every=100,
)
LOG_EVERY = 20                  # iterations between two lines of log.jsonl


def poly_lr(step, max_steps, base_lr, power=0.9):
    """Sec. IV-B "poly" policy: the rate of a step, 0 .. max_steps - 1 within one stage.

    READING Sec. IV-B: it starts anew in each stage, as in the authors' release, which stops at 1 %
    of the rate; the policy as printed goes to 0, and so does ours.
    """
    return base_lr * (1 - step / max_steps) ** power


# ---------------------------------------------------------------- Sec. IV-B: the three stages
def stage_iterations(settings):
    """Iterations of stages 1, 2, 3.

    READING Table I: the Xception baseline has one loss, so one stage, and LiSiam's total of
    iterations, so that the comparison is fair.
    READING Table VI: Model-C skips stage 1: nothing supervises it.
    """
    first, second, third = settings["iterations"]
    if settings["model"] == "xception":
        return [0, 0, first + second + third]
    if not VARIANTS[settings["variant"]].seg:
        return [0, second, third]
    return [first, second, third]


def freeze(net, stage):
    """Sets what a stage trains: 1 segmentation, 2 classification, 3 everything. Returns parameters.

    DEPARTURE Sec. IV-B: the authors' release clears requires_grad only, so that BatchNorm
    statistics and dropout of frozen parts go on. Ours are in eval mode: bit-identical afterwards.
    """
    net.train().requires_grad_(True)
    frozen = []
    if stage == 1:
        frozen = net.classification_modules()
    if stage == 2:
        frozen = net.segmentation_modules()
    for module in frozen:
        module.eval().requires_grad_(False)
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def plan_of(settings, stage):
    """losses.stage_plan of a run's settings: branches, heads and weights of a stage."""
    li, cls, seg = settings["lambdas"]
    if stage == 1:
        li = li * settings["li_in_stage_1"]
    return stage_plan(VARIANTS[settings["variant"]], stage, (li, cls, seg), settings["aux"])


def make_optimizer(parameters, settings, state=None):
    """A stage's optimizer; state: that of last.pt, where the run is resumed within the stage.

    READING Sec. IV-B: momentum starts anew in each stage, whose parameters are others.
    DEPARTURE Table I: the baseline was trained "using the official code" of [3]; ours has LiSiam's
    optimizer, batch and rate, so that only the network differs.
    """
    fused = settings["device"] == "cuda"        # one kernel a step instead of hundreds
    options = dict(lr=settings["lr"], weight_decay=settings["weight_decay"], fused=fused)
    if settings["optimizer"] == "adamw":
        optimizer = torch.optim.AdamW(parameters, **options)
    else:
        optimizer = torch.optim.SGD(parameters, momentum=settings["momentum"], **options)
    if state:
        try:
            for group in state["param_groups"]:     # a state brings the habits of its own device
                group["fused"] = fused
            optimizer.load_state_dict(state)
            for parameter, kept in optimizer.state.items():
                tensors = [value for value in kept.values() if torch.is_tensor(value)]
                if any(tensor.dim() and tensor.shape != parameter.shape for tensor in tensors):
                    raise ValueError("shapes")
        except (ValueError, KeyError, TypeError, AttributeError):
            data.stop("the optimizer in last.pt is damaged; start the run anew with another --out")
    return optimizer


def step_loss(net, batch, settings, stage):
    """One batch of data.TrainingPairs through the network: (loss, parts), see losses.total_loss."""
    device = settings["device"]
    clean = to_input(batch["clean"].to(device, non_blocking=True))          # I^1 (B, 3, 299, 299)
    degraded = to_input(batch["degraded"].to(device, non_blocking=True))    # I^2 (B, 3, 299, 299)
    mask = batch["mask"].to(device, non_blocking=True)                      # X_gt (B, 299, 299)
    labels = batch["label"].to(device, non_blocking=True)                   # alpha_gt (B,)
    if settings["model"] == "xception":
        # READING Table V: "+IQD" trains on degraded images only, by branch 2's rule, which leaves
        # one in eight as it is.
        with autocast(device):
            logits = net(degraded if settings["iqd"] else clean)
        loss = classification_loss(logits, labels)
        return loss, {"cls": loss}
    variant = VARIANTS[settings["variant"]]
    plan = plan_of(settings, stage)
    with autocast(device):
        branches = run_branches(net, variant, plan, clean, degraded)
    if variant.joined:                                                      # Model-G: 2B images
        labels = labels.repeat(2)
        mask = mask.repeat(2, 1, 1)
    return total_loss(branches, labels, mask, variant, plan.lambdas, plan.aux)      # Eq. (19)


def mixed_seed(*numbers):
    """Several numbers -> one of 32 bits, all that torch's generator on the CPU looks at."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


# ---------------------------------------------------------------- Sec. IV-A3: batches
def load_batches(pairs, settings, iterations, rank, world):
    """This process's part of the given iterations' batches, one after another.

    Batch i of a run is samples i B .. i B + B - 1, whoever loads them, however often the run was
    stopped: data.TrainingPairs makes sample n from (seed, n) alone.
    """
    size = settings["batch_size"]
    local = size // world
    starts = (iteration * size + rank * local for iteration in iterations)
    loader = torch.utils.data.DataLoader(
        pairs, batch_sampler=(range(start, start + local) for start in starts),
        num_workers=settings["workers"], pin_memory=settings["device"] == "cuda",
        generator=torch.Generator())            # its own, so that torch's own is for dropout alone
    return data.each_batch(loader)


def prepare_data(settings, rank, world):
    """(TrainingPairs, videos to validate on): every picture was opened, and masks are written."""
    name, root, mask = settings["data"], settings["root"], settings["mask"]
    where = (name, root, settings["quality"])
    is_lisiam = settings["model"] == "lisiam"
    needs_masks = is_lisiam and bool(VARIANTS[settings["variant"]].seg)
    if rank == 0:
        if name == "demo" and not (Path(root) / "original_sequences").is_dir():
            draw = Path(__file__).parent / "tests" / "demo_faces.py"
            if subprocess.call([sys.executable, draw, root]) != 0:
                raise SystemExit(2)             # it has said why
        workers = settings["workers"] or 1
        videos = data.require_videos(*where, "train", mask) + data.list_videos(*where, "val", mask)
        data.stop_if_broken(videos, mask if is_lisiam else None, workers)
        if is_lisiam and mask != "given":
            if world > 1 and masks.any_missing(name, root, mask):
                data.stop("masks are missing, and the other processes would wait too long: run "
                          f"python masks.py --data {name} --root {root} --mask {mask} first")
            masks.write_masks(name, root, mask, workers)
    if world > 1:
        distributed.barrier()
    videos, val_videos = data.training_videos(*where, mask, needs_masks)
    if rank == 0:
        reals = sum(not video.label for video in videos)
        print(f"{reals} real and {len(videos) - reals} fake videos to train on, {len(val_videos)} "
              f"to validate on; {settings['device']}, {precision(settings['device'])}")
        if len({video.label for video in val_videos}) < 2:
            print("warning: no real and fake val videos, so best.pt will hold the last weights")
    pairs = data.TrainingPairs(videos, settings["size"], settings["seed"], settings["num_classes"],
                               mask if needs_masks else None)
    return pairs, val_videos


# ---------------------------------------------------------------- several GPUs
def join_processes(settings):
    """(rank, world): which of how many processes this is. torchrun starts one for each GPU.

    READING Sec. IV-B: how many GPUs is not said. The batch of 32 is shared out, gradients are
    averaged, and on CUDA BatchNorm is over the whole batch: several GPUs compute what one would,
    but for dropout, which each draws for its own images. On gloo each process normalizes by its
    part. The log has rank 0's losses.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1
    if settings["batch_size"] % world or settings["batch_size"] < 2 * world:
        data.stop(f"--batch-size {settings['batch_size']} cannot be shared by {world} processes: "
                  "each needs as many pairs, at least 2")
    timeout = timedelta(minutes=30)             # the others wait while rank 0 checks and validates
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
        # With a loss switched off some parameters get no gradient.
        find_unused_parameters=0 in [*settings["lambdas"], settings["aux"]])


# ---------------------------------------------------------------- the folder of a run
# What may differ between a run and its --resume. Another device, or number of processes (which is
# not stored), rounds differently and draws another dropout.
FREE_TO_CHANGE = ("root", "workers", "device", "out", "save_every")


class RunFolder:
    """runs/NAME: log.jsonl, last.pt, best.pt. Rank 0 of one run writes there.

    No lock, which a kill would leave behind: a new run creates the log, so there can be one; any
    run stops when last.pt is no longer the file that it read or wrote.
    """

    def __init__(self, settings, rank):
        self.settings = {name: value for name, value in settings.items() if name != "resume"}
        self.folder = Path(settings["out"])
        self.log_path = self.folder / "log.jsonl"
        self.last = self.folder / "last.pt"
        self.writes = rank == 0
        self.seen = None
        if settings["resume"]:
            if not self.last.is_file():
                data.stop(f"nothing to resume: no {self.last}; name a run by --out, or delete what "
                          "is left of one that was killed at its start")
        elif self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                open(self.log_path, "x").close()
            except FileExistsError:
                advice = "--resume it, or use another --out"
                if not self.last.exists():
                    advice = "it is starting, or was killed at its start: then delete the folder"
                data.stop(f"{self.folder} already holds a run: {advice}")

    def identity(self):
        """Tells one last.pt from another."""
        if not self.last.exists():
            return None
        status = self.last.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read(self):
        """last.pt, if it was made with these settings; forgets later lines of the log."""
        self.seen = self.identity()
        load_network(self.last)                 # ValueError where it is no checkpoint of ours
        checkpoint = torch.load(self.last, map_location="cpu", weights_only=True)
        iteration = checkpoint.get("iteration")
        is_run = type(iteration) is int and iteration >= 0 and "optimizer" in checkpoint
        if not is_run or type(checkpoint.get("best")) is not float:
            raise ValueError(f"{self.last} holds weights, but no run to go on with: a best.pt?")
        for name in {**checkpoint["settings"], **self.settings}:
            value = checkpoint["settings"].get(name)
            now = self.settings.get(name)
            if name not in FREE_TO_CHANGE and now != value:
                data.stop(f"{self.last} was trained with {name} = {value}, not {now}; resume with "
                          "the run's own settings, or start another run with --out")
        if self.writes:
            for part in self.folder.glob(".*.part"):        # what a killed save has left
                part.unlink()
            # A line that a full disk tore has no end. What will be done again is logged again.
            log = self.log_path.read_text() if self.log_path.exists() else ""
            kept = [line for line in log.splitlines(keepends=True)
                    if line.endswith("\n") and json.loads(line)["iteration"] <= iteration]
            data.write_whole(self.log_path, "".join(kept).encode())
        return checkpoint

    def log(self, line):
        if self.writes:
            with open(self.log_path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self, name, net, iteration, **more):
        if not self.writes:
            return
        if self.identity() != self.seen:
            data.stop(f"another run has written {self.last}; this one stops: each needs its --out")
        buffer = io.BytesIO()
        torch.save({"model": net.state_dict(), "iteration": iteration, "settings": self.settings,
                    **more}, buffer)
        data.write_whole(self.folder / name, buffer.getvalue())
        self.seen = self.identity()


def prepare(settings, run, rank, world):
    """All that can go wrong, before iteration 0: (network, its checkpoint, *prepare_data's two)."""
    torch.manual_seed(settings["seed"])
    net = build_network(settings)
    checkpoint = {"iteration": 0, "best": -1.0, "optimizer": None}
    try:
        if settings["resume"]:
            checkpoint = run.read()
            net.load_state_dict(checkpoint["model"])
        elif settings["pretrained"] != "none" and rank == 0:    # which hands them to the others
            print(load_xception_weights(net, settings["pretrained"]))
        pairs, val_videos = prepare_data(settings, rank, world)
        if not settings["resume"]:
            run.save("last.pt", net, **checkpoint)
    except ValueError as error:
        data.stop(error)
    finally:
        # A run that could not start leaves nothing: the same command can be given again.
        if run.writes and not run.last.exists():
            run.log_path.unlink(missing_ok=True)
            if not any(run.folder.iterdir()):
                run.folder.rmdir()
    return net, checkpoint, pairs, val_videos


# ---------------------------------------------------------------- now and then: log, validate
def log_step(run, bar, iteration, stage, rate, losses, net):
    """A line of log.jsonl; stops where the loss, a weight or a statistic is no finite number.

    Only here, and where it validates or saves, does the loop wait for the GPU.
    """
    losses = {name: loss.item() for name, loss in losses.items()}
    tensors = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
    norm = torch.nn.utils.get_total_norm(tensors).item()        # weights and BatchNorm statistics
    if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
        data.stop(f"iteration {iteration}: the loss is {losses['loss']}, the norm of all weights "
                  f"{norm}; {run.last} holds an earlier iteration: try a lower --lr")
    shown = {name: f"{loss:.3f}" for name, loss in losses.items()}
    bar.set_postfix({"stage": stage, **shown})
    now = round(time.time(), 1)
    run.log({"iteration": iteration, "stage": stage, "lr": rate, **losses, "time": now})


def validate(net, videos, settings, run, iteration, stage, best):
    """Frame AUC on val; best.pt where it is the highest so far. Returns the highest.

    Of equals the later counts: it has trained longer. The map's best threshold is kept, too.
    """
    if len({video.label for video in videos}) < 2:
        return best
    found = evaluate.predict(net, videos, settings, settings["val_frames"], title="validation")
    row = evaluate.summarize(found, videos)
    run.log({"iteration": iteration, "stage": stage, "val": row})
    tqdm.write(f"iteration {iteration}, stage {stage}: val frame AUC {row['frame_auc']:.3f}, video "
               f"AUC {row['video_auc']:.3f}, IoU {evaluate.show(row['iou'])}")
    if row["frame_auc"] < best:
        return best
    run.save("best.pt", net, iteration, threshold=evaluate.best_threshold(row))
    return row["frame_auc"]


# ---------------------------------------------------------------- command line
def parse_arguments(argv=None):
    """Command line -> settings: the flags given, else DEMO's with --data demo, else PAPER's."""
    parser = data.new_parser("Train LiSiam in the paper's three stages (Sec. IV-B).")
    flag = parser.add_argument
    flag("--data", choices=data.TRAINABLE, required=True, help="FF++ face crops, or made-up ones")
    flag("--root", type=data.some_path, help="folder of the data set, default datasets/...")
    flag("--quality", choices=data.QUALITIES, help="FF++ compression (Sec. IV-A1)")
    flag("--model", choices=["lisiam", "xception"], default="lisiam",
         help="xception: the baseline; default %(default)s")
    flag("--variant", choices=list(VARIANTS), default="A", help="Table VI, default A = LiSiam")
    flag("--iqd", action="store_true", help="degrade the baseline's input (Table V)")
    flag("--mask", choices=[*masks.MASKS, "given"], default="ssim",
         help="X_gt (Table VII), default %(default)s; given: a benchmark's own")
    flag("--num-classes", type=int, choices=[2, 5], default=2, help="default 2; 5 as in Fig. 5")
    flag("--seed", type=data.whole_number(0), default=0, help="default %(default)s")
    flag("--workers", type=data.whole_number(0), default=min(8, os.cpu_count()),
         help="loading processes, default %(default)s")
    flag("--device", choices=["cpu", "cuda"],
         default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    flag("--out", type=data.some_path, help="folder of the run, default runs/NAME by settings")
    flag("--resume", action="store_true", help="go on from last.pt in the folder of the run")
    # Entries of PAPER and DEMO, where their defaults stand.
    flag("--iterations", type=data.whole_number(0), nargs=3, metavar=("SEG", "CLS", "ALL"),
         help="of the three stages")
    flag("--batch-size", type=data.whole_number(2), help="pairs, over all processes")
    flag("--lr", type=float, help="initial rate")
    flag("--lambdas", type=float, nargs=3, metavar=("LI", "CLS", "SEG"), help="Eq. (19)")
    flag("--aux", type=float, help="weight of OCR's soft-region loss [39]; 0: off")
    flag("--pretrained", metavar="imagenet|FILE|none", help="Xception weights to start from")
    flag("--width", type=float, help="channel factor")
    flag("--size", type=data.whole_number(23), help="pixels of a crop's side")
    flag("--eval-every", type=data.whole_number(1), help="iterations, from stage 2 on")
    flag("--save-every", type=data.whole_number(1), help="iterations between two last.pt")
    flag("--val-frames", type=data.whole_number(1), help="at most so many of each val video")
    settings = vars(parser.parse_args(argv))
    of_lisiam = settings["lambdas"] or settings["aux"] is not None or settings["variant"] != "A"
    if settings["model"] == "xception" and of_lisiam:
        data.stop("--variant, --lambdas and --aux are LiSiam's; the baseline has one loss")
    defaults = {**PAPER, **DEMO} if settings["data"] == "demo" else PAPER
    for name, value in defaults.items():
        if settings.get(name) is None:
            settings[name] = value
    settings["transformer"] = VARIANTS[settings["variant"]].transformer
    settings["root"] = str(settings["root"] or data.ROOTS[settings["data"]])
    settings["out"] = str(settings["out"] or f"runs/{run_name(settings)}")
    check_arguments(settings)
    return settings


def run_name(settings):
    """demo, or what the run is: ff++-c40-lisiam-G-seed1."""
    names = [settings["data"], settings["quality"], settings["model"]]
    others = {
        "5classes": settings["num_classes"] == 5,
        settings["variant"]: settings["variant"] != "A",
        "iqd": settings["iqd"],
        settings["mask"]: settings["mask"] != "ssim",
        f"seed{settings['seed']}": settings["seed"] != 0,
    }
    names += [name for name, differs in others.items() if differs]
    return "demo" if names == ["demo", "c23", "lisiam"] else "-".join(names)


def check_arguments(settings):
    """Stops where flags make no sense together, before anything else is done."""
    if not all(0 <= weight < math.inf for weight in [*settings["lambdas"], settings["aux"]]):
        data.stop("--lambdas and --aux must be numbers from 0 on; 0 leaves a loss out")
    if not 0 < settings["lr"] < math.inf or not 0 < settings["width"] <= 2:
        data.stop("--lr and --width must be above 0, and --width at most 2")
    if settings["seed"] >= 2 ** 31 or sum(settings["iterations"]) == 0:
        data.stop("--seed must be below 2147483648, and --iterations not all 0")
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        data.stop("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if settings["model"] == "xception":
        return
    if settings["iqd"]:
        data.stop("--iqd is for --model xception; LiSiam has a degraded branch already")
    variant = VARIANTS[settings["variant"]]
    for stage, steps in zip((1, 2, 3), stage_iterations(settings)):
        plan = plan_of(settings, stage)
        li, cls, seg = plan.lambdas
        trains = (variant.li and li) or cls or (variant.seg and (seg or plan.aux))
        if steps and not trains:
            data.stop(f"stage {stage} has nothing to train with these --lambdas and --aux; give it "
                      "0 --iterations, or a loss")


# ---------------------------------------------------------------- Sec. IV-B
def main(argv=None):
    settings = parse_arguments(argv)
    rank, world = join_processes(settings)
    run = RunFolder(settings, rank)
    net, checkpoint, pairs, val_videos = prepare(settings, run, rank, world)
    iteration, best = checkpoint["iteration"], checkpoint["best"]
    net.to(settings["device"], memory_format=torch.channels_last)       # faster
    if world > 1 and settings["device"] == "cuda":
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)

    end = 0
    bar = tqdm(total=sum(stage_iterations(settings)), initial=iteration, disable=rank > 0)
    for stage, steps in zip((1, 2, 3), stage_iterations(settings)):
        start = end
        end = start + steps
        if iteration >= end:                    # no such stage, or a resumed run is past it
            continue
        parameters = freeze(net, stage)
        state = checkpoint["optimizer"] if iteration > start else None
        optimizer = make_optimizer(parameters, settings, state)
        parallel = parallel_network(net, settings, world)
        for batch in load_batches(pairs, settings, range(iteration, end), rank, world):
            # Dropout is a function of (seed, iteration, process), so there is no state to save.
            torch.manual_seed(mixed_seed(settings["seed"], iteration, rank))
            step = iteration - start
            rate = poly_lr(step, steps, settings["lr"])
            if stage == 3 and step < settings["warm_up"]:                       # the demo's
                rate = rate * (step + 1) / settings["warm_up"]
            optimizer.param_groups[0]["lr"] = rate
            loss, parts = step_loss(parallel, batch, settings, stage)           # Eq. (19)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            iteration += 1
            bar.update()

            ends_stage = iteration == end
            saves = ends_stage or iteration % settings["save_every"] == 0
            # In stage 1 there is nothing to validate: the head is untrained.
            validates = stage > 1 and (ends_stage or iteration % settings["eval_every"] == 0)
            looks = saves or validates
            if looks or iteration % LOG_EVERY == 0:
                log_step(run, bar, iteration, stage, rate, {"loss": loss, **parts}, net)
            if (validates or ends_stage) and rank == 0:
                if validates:
                    best = validate(net, val_videos, settings, run, iteration, stage, best)
                if settings["model"] == "lisiam":
                    evaluate.panel(net, batch, settings, run.folder / f"panel_{iteration:06d}.png")
                freeze(net, stage)              # both have set the network to eval mode
            if saves:
                run.save("last.pt", net, iteration, best=best, optimizer=optimizer.state_dict())
            if looks and world > 1:
                distributed.barrier()
    bar.close()

    if rank == 0:
        finish(run, net, iteration, best)
    if world > 1:
        distributed.destroy_process_group()


def finish(run, net, iteration, best):
    """Training curves, and the demo's test table; for FF++ the command that makes one."""
    if best < 0:                                # never validated
        run.save("best.pt", net, iteration)
    evaluate.training_curves(run.folder)
    settings = run.settings
    test = ["--checkpoint", run.folder / "best.pt", "--data", settings["data"],
            "--root", settings["root"]]
    if settings["data"] != "demo":
        print("done; test it: python evaluate.py", *test, "--quality", settings["quality"])
        return
    test += ["--quality", *data.QUALITIES, "--workers", settings["workers"],
             "--device", settings["device"], "--json", run.folder / "test.json"]
    print(f"\nIts test split; pictures of the training: {run.folder}/*.png")
    evaluate.main([str(word) for word in test])


if __name__ == "__main__":
    data.run(main, "if the run has a last.pt, the same command with --resume goes on from it")
