"""
Training: segmentation first, then classification with segmentation frozen, then everything.

Read beside Sec. IV-B (schedule), III-C and III-D (losses), IV-A3 (pairs).
  paper                   code                     paper's value
  three steps             stages 1, 2, 3           146k, 16k, 324k iterations
  mini-batch              --batch-size             32 pairs (clean, degraded)
  poly policy             poly_lr                  0.002 (1 - step / steps)^0.9, anew in each stage
  lambda_li, _cls, _seg   --lambdas                1, 1, 1

    python train.py --data demo                                    a laptop, no downloads: all stages and a test table in minutes
    python train.py --data ff++ --quality c23 [--root DIR]         the paper
    torchrun --nproc_per_node=N train.py ...                       several GPUs

Writes runs/NAME/: last.pt (all that --resume needs), best.pt (best frame AUC on val), log.jsonl, panel_*.png, curves.png;
the demo also test.json.
"""

import argparse
import datetime
import io
import json
import math
import os
import time
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

import data
import masks
from evaluate import build_network, evaluate, load_network, predict, sheet, show, summarize, table, training_curves
from losses import VARIANTS, classification_loss, total_loss
from model import load_xception_weights

# ---------------------------------------------------------------- Sec. IV-B: the paper's settings, and the demo's
PAPER = dict(
    quality="c23", iterations=[146000, 16000, 324000], batch_size=32, width=1.0, size=299, pretrained="imagenet",
    optimizer="sgd",            # READING Sec. IV-B: momentum 0.9, weight decay 5e-4 are the authors' release's; the paper says SGD only
    lr=0.002, eval_every=5400,  # READING Sec. IV-B: which weights count is not said; best val AUC, each 30 epochs as released
    save_every=1000, val_frames=None, lambdas=[1.0, 1.0, 1.0], aux=0.4,
    li_in_stage_1=1.0,          # times lambda_li
)
# DEPARTURE Sec. IV-B: each entry below. Minutes on two cores, from random weights, instead of days on a GPU from ImageNet's.
DEMO = {**PAPER, **dict(
    iterations=[300, 60, 840], batch_size=16, eval_every=200, save_every=100,
    width=0.125, size=data.DEMO_SIZE,   # 0.5 of 32.3 million parameters; 107 px leave a 13 x 13 map
    pretrained="none",          # no ImageNet weights exist for a narrow trunk
    optimizer="adamw",          # SGD from random weights learns nothing in so few steps
    li_in_stage_1=0.0,          # from random weights, L_li in stage 1 makes the map constant: the easiest way to agree
)}
LOG_EVERY = 20                  # iterations between two lines of log.jsonl; but for these, saves and validations nothing waits for the GPU


def poly_lr(step, max_steps, base_lr, power=0.9):
    """Sec. IV-B "poly" policy. step counts 0 .. max_steps - 1 within one stage; returns the rate for that step.

    READING Sec. IV-B: it restarts in each stage, as in the authors' release (which also has a floor of 1 %; we have none).
    """
    return base_lr * (1 - step / max_steps) ** power


def freeze(net, stage):
    """Sets what the stage trains and returns its parameters: 1 segmentation, 2 classification, 3 (and the baseline) everything.

    DEPARTURE Sec. IV-B: the authors' release clears requires_grad only, so that BatchNorm statistics and dropout of frozen parts
    go on. Here a frozen part is in eval mode and bit-identical afterwards.
    """
    net.train().requires_grad_(True)
    for module in [] if stage == 3 else net.classification_modules() if stage == 1 else net.segmentation_modules():
        module.eval().requires_grad_(False)
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def stage_weights(settings, stage):
    """Eq. (19)'s weights in a stage: (lambda_li, lambda_cls, lambda_seg), aux. A weight of 0 leaves its loss out.

    READING Sec. IV-B: which losses a stage has is not said. Stage 1 is Eq. (19) without L_cls, whose head is frozen (and not run);
    stage 2 is L_cls alone, as nothing else reaches what it trains; stage 3 is all of it.
    """
    li, cls, seg = settings["lambdas"]
    return ((0, cls, 0), 0) if stage == 2 else ((li * (settings["li_in_stage_1"] if stage == 1 else 1), cls, seg),
                                                settings["aux"])


def make_optimizer(parameters, settings, device):
    if settings["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=5e-4)
    return torch.optim.SGD(parameters, lr=settings["lr"], momentum=0.9, weight_decay=5e-4, fused=device == "cuda")


def save(path, checkpoint):
    """Writes a checkpoint so that `path` is always whole: a temporary file beside it, then a rename. A full disk leaves the old one."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = "the file of the last save is whole" if path.exists() else "no checkpoint was written"
        data.stop(f"could not save {path} ({error.strerror}); {kept}: make room, then go on with --resume")


def batch_draws(iteration, batch_size, rank=0, world=1):
    """The draws of one process in one iteration. Batch i of the run is draws i B .. i B + B - 1, whoever loads them, however often
    the run was stopped: data.TrainingPairs makes draw n from (seed, n) alone."""
    local = batch_size // world
    return range(iteration * batch_size + rank * local, iteration * batch_size + (rank + 1) * local)


def panel(net, batch, path, device):
    """A PNG of what the network sees: the first four fakes and two reals of a batch, a row each. White = fake. Leaves eval mode on."""
    rows = sorted(range(len(batch["label"])), key=lambda k: -int(batch["label"][k] > 0))
    rows = rows[:4] + [k for k in rows[4:] if batch["label"][k] == 0][:2]
    pictures = [batch["clean"][rows], batch["degraded"][rows], batch["mask"][rows] * 255]
    net.eval()
    with torch.inference_mode():
        for images in pictures[:2]:
            seg_logits = net(data.to_input(images.to(device)), heads=(False, False)).seg_logits.float()
            pictures.append((F.interpolate(seg_logits.softmax(1)[:, 1:], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
                             * 255).byte().cpu())
    titles = "clean", "degraded", "mask", "map of clean", "map of degraded"
    sheet(path.stem.replace("panel_", "training batch, iteration "), titles, [
        ("fake" if batch["label"][k] else "real", [to_pil_image(images[row]) for images in pictures]) for row, k in enumerate(rows)]).save(path)


def parse_arguments(argv=None):
    """Command line -> settings dict: the flags given, else the paper's values, or with --data demo the demo's (DEMO)."""
    parser = argparse.ArgumentParser(description="Train LiSiam in the paper's three stages (Sec. IV-B).")
    parser.add_argument("--data", choices=["ff++", "demo"], required=True, help="FaceForensics++ face crops, or the made-up demo")
    parser.add_argument("--root", help="folder of the data set, default " + ", ".join(data.DEFAULT_ROOTS[d] for d in ("ff++", "demo")))
    parser.add_argument("--quality", choices=data.QUALITIES, help="FF++ compression (Sec. IV-A), default c23")
    parser.add_argument("--model", choices=["lisiam", "xception"], default="lisiam", help="xception: the baseline of Tables I-V")
    parser.add_argument("--variant", choices=list(VARIANTS), default="A", help="Table VI, default A = LiSiam")
    parser.add_argument("--iqd", action="store_true", help="degrade the Xception baseline's input (Table V)")
    parser.add_argument("--mask", choices=["ssim", "diff", "given"], default="ssim", help="X_gt (Table VII); given: a benchmark's own")
    parser.add_argument("--iterations", type=int, nargs=3, metavar=("SEG", "CLS", "ALL"),
                        help="steps per stage; the paper's are 146000 16000 324000 (demo: 300 60 840)")
    parser.add_argument("--batch-size", type=int, help="pairs, over all processes (Sec. IV-B), default 32 (demo: 16)")
    parser.add_argument("--lr", type=float, help="initial rate (Sec. IV-B), default 0.002")
    parser.add_argument("--lambdas", type=float, nargs=3, metavar=("LI", "CLS", "SEG"), help="Eq. (19), default 1 1 1")
    parser.add_argument("--aux", type=float, help="weight of OCR's soft-region loss [39], default 0.4; 0: off")
    parser.add_argument("--num-classes", type=int, choices=[2, 5], default=2, help="5: real and the four methods (Fig. 5)")
    parser.add_argument("--pretrained", metavar="imagenet|FILE|none", help="Xception weights to start from, default imagenet (demo: none)")
    parser.add_argument("--width", type=float, help="channel factor, default 1.0 (demo: 0.125)")
    parser.add_argument("--size", type=int, help="pixels of a crop's side, default 299 (demo: 107)")
    parser.add_argument("--augment", action="store_true", help="random crop and flip, the same for both branches and the mask")
    parser.add_argument("--seed", type=int, default=0, help="of weights, draws and dropout, default %(default)s")
    parser.add_argument("--eval-every", type=int, help="iterations between validations, from stage 2 on, default 5400 (demo: 200)")
    parser.add_argument("--val-frames", type=int, help="at most so many frames a validation video, default all")
    parser.add_argument("--save-every", type=int, help="iterations between two last.pt, default 1000 (demo: 100)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count()), help="loading processes, default %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--no-amp", action="store_true", help="float32 instead of bfloat16 on CUDA")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--out", help="folder of the run, default runs/ and a name made of the settings")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt in the folder of the run")
    settings = vars(parser.parse_args(argv))
    for name, value in (DEMO if settings["data"] == "demo" else PAPER).items():
        if settings.get(name) is None:
            settings[name] = value
    # evaluate.py prints the paper's numbers beside a run's only where it was trained as the paper says.
    settings["as_published"] = (
        settings["data"] == "ff++" and settings["num_classes"] == 2 and not settings["augment"]
        and Path(settings["pretrained"]).name in ("imagenet", "xception-43020ad28.pth", "xception-b5690688.pth")   # ImageNet's, not a detector's
        and all(settings[name] == PAPER[name] for name in ("iterations", "batch_size", "width", "size", "lr", "lambdas", "aux")))
    settings["root"] = settings["root"] or data.DEFAULT_ROOTS[settings["data"]]
    if settings["out"] is None:
        name = [settings["data"], settings["quality"], settings["model"]] + ([settings["variant"]] if settings["variant"] != "A" else [])
        name += ["iqd"] * settings["iqd"] + ([settings["mask"]] if settings["mask"] != "ssim" else [])
        settings["out"] = "runs/demo" if name == ["demo", "c23", "lisiam"] else "runs/" + "-".join(name)
    if settings["iqd"] and settings["model"] != "xception":
        data.stop("--iqd degrades the input of --model xception; LiSiam has its degraded branch already")
    if settings["model"] == "xception" and (settings["variant"] != "A" or settings["lambdas"] != PAPER["lambdas"]):
        data.stop("--variant and --lambdas are LiSiam's; --model xception has one cross-entropy loss")
    if min(settings["save_every"], settings["eval_every"], settings["val_frames"] or 1) < 1 or settings["workers"] < 0 or not (
            settings["lr"] > 0 and settings["width"] > 0):
        data.stop("--save-every, --eval-every and --val-frames must be at least 1, --workers at least 0, --lr and --width above 0")
    if not all(0 <= weight < math.inf for weight in (*settings["lambdas"], settings["aux"])):
        data.stop("--lambdas and --aux must be numbers from 0 on; 0 leaves a loss out")
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        data.stop("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if min(settings["iterations"]) < 0 or settings["batch_size"] < 2 or settings["size"] < 23 or not 0 <= settings["seed"] < 2 ** 31:
        data.stop("--iterations must not be negative, --batch-size at least 2 (BatchNorm), --size at least 23 (a map of 3 x 3 cells), "
                  "--seed from 0 to 2147483647")
    return settings


# What may differ between a run and its --resume. device and compile change rounding, and with it the last bits; so does the number
# of processes, which is not stored: each has BatchNorm statistics and dropout of its own. The others change nothing.
FREE_TO_CHANGE = {"root", "workers", "device", "out", "save_every", "compile"}


def resume(out, settings):
    """last.pt of the run, after a check that it was made with these settings."""
    path = out / "last.pt"
    if not path.is_file():
        data.stop(f"nothing to resume: no {path}; leave out --resume to start the run, or name its folder with --out")
    load_network(path)                                               # stops with a sentence where it is no checkpoint of ours
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in checkpoint["settings"].items():
        if name not in FREE_TO_CHANGE and settings.get(name) != value:
            data.stop(f"{path} was trained with {name} = {value}, not {settings.get(name)}; resume with the run's own settings, or "
                      "start another run with --out")
    return checkpoint


def main(argv=None):
    settings = parse_arguments(argv)
    device, out, variant = settings["device"], Path(settings["out"]), VARIANTS[settings["variant"]]
    baseline, steps_by_stage, seed = settings["model"] == "xception", list(settings["iterations"]), settings["seed"]

    if baseline:                # READING Table I: the baseline has one stage, cross-entropy, and LiSiam's total of steps, to compare
        steps_by_stage = [0, 0, sum(steps_by_stage)]
    elif not variant.seg:       # READING Table VI: Model-C skips stage 1: nothing supervises it
        steps_by_stage[0] = 0
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))       # set by torchrun
    for stage, stage_steps in zip((1, 2, 3), steps_by_stage) if not baseline else ():
        (li, cls, seg), aux = stage_weights(settings, stage)
        if stage_steps and not (li * variant.li or cls * (stage > 1) or (seg or aux) * bool(variant.seg)):
            data.stop(f"stage {stage} has nothing to train with these --lambdas and --aux; give it 0 --iterations, or a loss")
        trains_f_seg = li * variant.li or seg * bool(variant.seg) or cls * variant.transformer * (stage == 3)
        if world > 1 and stage_steps and not ((stage == 2 or trains_f_seg) and (stage == 1 or cls)):
            data.stop(f"with these --lambdas stage {stage} leaves a part without gradients, which several processes cannot average; use one "
                      "process, or other weights")

    # ---------------------------------------------------------------- one process a GPU under torchrun, else just one
    if world > 1:
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=datetime.timedelta(hours=12))
        # hours, not NCCL's 10 minutes: the others wait while rank 0 writes masks and validates
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if settings["batch_size"] % world or settings["batch_size"] < 2 * world:
        data.stop(f"--batch-size {settings['batch_size']} cannot be shared by {world} processes: each needs as many pairs, at least 2")
    if (out / "last.pt").exists() and not settings["resume"]:
        data.stop(f"{out} already holds a run; --resume goes on with it, --out FOLDER starts another")

    # ---------------------------------------------------------------- Sec. IV-A: data and masks, all checked before the network is built
    if rank == 0:
        if settings["data"] == "demo":
            data.write_demo(settings["root"])
        data.require_videos(settings["data"], settings["root"], settings["quality"], "train", settings["mask"])
        if settings["mask"] != "given" and not baseline:
            masks.write_masks(settings["data"], settings["root"], settings["mask"])
        out.mkdir(parents=True, exist_ok=True)
    if world > 1:
        distributed.barrier()
    where = settings["data"], settings["root"], settings["quality"]
    videos = data.list_videos(*where, "train", settings["mask"])
    val_videos = data.list_videos(*where, "val", settings["mask"])
    needs_masks = not baseline and bool(variant.seg)
    pairs = data.TrainingPairs(videos, settings["size"], seed, settings["num_classes"], settings["augment"], needs_masks)
    maskless = [video for video in videos if needs_masks and video.label and not video.masks]
    if len({video.label for video in pairs.videos}) < 2:
        data.stop(f"training needs real and fake videos; {len(videos)} videos found for {settings['quality']} under {settings['root']}, "
                  f"{len(maskless)} fakes of them without masks (is the real twin there? see python data.py check)")
    if rank == 0:
        print(f"{len({v.key for v in pairs.videos if not v.label})} real and {len({v.key for v in pairs.videos if v.label})} fake videos "
              f"to train on, {len(val_videos)} to validate on" + f"; {len(maskless)} fakes left out for want of masks" * bool(maskless))
        if len({video.label for video in val_videos}) < 2:
            print("warning: no real and fake val videos, so best.pt will hold the last weights")

    # ---------------------------------------------------------------- the network
    torch.manual_seed(seed)
    net = build_network(settings)
    iteration, best, checkpoint = 0, -1.0, None
    if settings["resume"]:
        checkpoint = resume(out, settings)
        net.load_state_dict(checkpoint["model"])
        iteration, best = checkpoint["iteration"], checkpoint["best"]
    elif settings["pretrained"] != "none":
        try:
            print(load_xception_weights(net, settings["pretrained"]))
        except ValueError as error:
            data.stop(str(error))
    net.to(device, memory_format=torch.channels_last)                # faster on CUDA and CPU alike; the numbers are the same
    if settings["compile"]:
        net.compile()
    kept = {name: value for name, value in settings.items() if name != "resume"}

    def save_last(optimizer):
        save(out / "last.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict() if optimizer else None,
                               "iteration": iteration, "best": best, "settings": kept})

    if rank == 0:
        log_path = out / "log.jsonl"
        whole = log_path.read_text().rpartition("\n")[0] if settings["resume"] and log_path.exists() else ""   # a full disk tears a line
        part = out / ".log.part"                                     # without what will be done again
        part.write_text("".join(line + "\n" for line in whole.splitlines() if json.loads(line)["iteration"] <= iteration))
        os.replace(part, log_path)
        log = open(log_path, "a", buffering=1)
        if not settings["resume"]:
            save_last(None)

    # ---------------------------------------------------------------- Sec. IV-B: the three stages
    draws, failed, named = 0, 0, set()                               # pictures drawn, unreadable ones, their sentences
    bar = tqdm(total=sum(steps_by_stage), initial=iteration, unit="it", disable=rank > 0)
    for stage, stage_steps in zip((1, 2, 3), steps_by_stage):
        stage_start = sum(steps_by_stage[:stage - 1])
        stage_end = stage_start + stage_steps
        if iteration >= stage_end:
            continue
        parameters = freeze(net, stage)
        optimizer = make_optimizer(parameters, settings, device)     # READING Sec. IV-B: momentum starts anew with the schedule
        if checkpoint and checkpoint["optimizer"] and iteration > stage_start:
            optimizer.load_state_dict(checkpoint["optimizer"])
        checkpoint = None
        parallel = net if world == 1 else torch.nn.parallel.DistributedDataParallel(net)
        lambdas, aux = stage_weights(settings, stage)
        heads = [stage > 1 and n in variant.cls for n in (1, 2)]     # stage 1 has no use for f_scu, f_mt, f_mlp
        # Branches to run. Stage 2 needs those that the head reads: nothing else reaches a part that trains.
        runs = variant.cls if stage == 2 else {"pair": (1, 2), "degraded": (2,), "both": (1,)}[variant.images]

        batches = iter(torch.utils.data.DataLoader(                  # its own generator: the default one is for dropout alone
            pairs, num_workers=settings["workers"], pin_memory=device == "cuda", generator=torch.Generator(),
            batch_sampler=(batch_draws(i, settings["batch_size"], rank, world) for i in range(iteration, stage_end))))
        while iteration < stage_end:
            try:
                batch = next(batches)
            except ValueError as error:                              # a video without one readable frame; from a worker, with its traceback
                data.stop(str(error).splitlines()[-1].removeprefix("ValueError: "))
            torch.manual_seed((seed << 32) + iteration * world + rank)   # dropout: a function of (seed, iteration), nothing to save
            clean, degraded, mask, labels = (batch[name].to(device, non_blocking=True) for name in ("clean", "degraded", "mask", "label"))
            clean, degraded = data.to_input(clean), data.to_input(degraded)  # (B, 3, 299, 299) in [-1, 1]
            for group in optimizer.param_groups:
                group["lr"] = poly_lr(iteration - stage_start, stage_steps, settings["lr"])

            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and not settings["no_amp"]):
                if baseline:
                    logits = parallel(degraded if settings["iqd"] else clean)
                elif variant.images == "both":                       # Model-G: 2B images through one branch
                    branches = {1: parallel(torch.cat([clean, degraded]), heads=heads)}
                    labels, mask = labels.repeat(2), mask.repeat(2, 1, 1)
                elif len(runs) == 2:                                 # Fig. 1
                    branches = dict(zip((1, 2), parallel(clean, degraded, heads=heads)))
                else:
                    branches = {n: parallel((clean, degraded)[n - 1], heads=(heads[n - 1], False)) for n in runs}
            if baseline:                                             # losses in float32, whatever the network ran in
                loss = classification_loss(logits, labels)
                parts = {"cls": loss}
            else:
                loss, parts = total_loss(branches, labels, mask, variant, lambdas, aux)    # Eq. (19)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            iteration += 1
            bar.update()

            # ---------------------------------------------------------------- now and then: log, validate, save
            draws += len(batch["label"])
            for sentence in filter(None, "\n".join(batch["unreadable"]).split("\n")):
                failed += 1
                if sentence not in named:
                    tqdm.write(f"warning: {sentence}; another frame of its video is used")
                named.add(sentence)
            if failed > max(10, 0.01 * draws):
                data.stop(f"{failed} of {draws} draws met an unreadable picture ({len(named)} different ones), over 1 %; python data.py check "
                          f"names them all; {out / 'last.pt'} is there to --resume from once they are replaced")
            last_step = iteration == stage_end
            validates = stage > 1 and (last_step or iteration % settings["eval_every"] == 0)     # before, the head is untrained
            saves = last_step or iteration % settings["save_every"] == 0
            if last_step or saves or validates or iteration % LOG_EVERY == 0:
                line = {"iteration": iteration, "stage": stage, "lr": optimizer.param_groups[0]["lr"], "loss": loss.item(),
                        **{name: part.item() for name, part in parts.items()}}
                if not (math.isfinite(line["loss"]) and all(parameter.isfinite().all() for parameter in parameters)):
                    data.stop(f"the loss became {line['loss']} or a weight infinite in stage {stage} at iteration {iteration} ({line}); "
                              f"{out / 'last.pt'} holds an earlier iteration: try a lower --lr, or look for the input that did it")
                bar.set_postfix({"stage": stage, **{name: f"{line[name]:.3f}" for name in ("loss", *parts)}})
                if rank == 0:
                    log.write(json.dumps(line | {"time": round(time.time(), 1)}) + "\n")
            if validates and rank == 0 and len({video.label for video in val_videos}) == 2:
                row = summarize(predict(net, val_videos, settings["size"], settings["batch_size"], device, settings["workers"],
                                        settings["val_frames"], not settings["no_amp"], bar="validation"), val_videos)
                log.write(json.dumps({"iteration": iteration, "stage": stage, "val": row}) + "\n")
                tqdm.write(f"iteration {iteration}, stage {stage}: val frame AUC {show(row['frame_auc'])}, video AUC {show(row['video_auc'])}, "
                           f"IoU {show(row['iou'])}" + " (no readable real, or no fake val frame)" * (row["frame_auc"] is None))
                if row["frame_auc"] is not None and row["frame_auc"] > best:
                    best = row["frame_auc"]
                    save(out / "best.pt", {"model": net.state_dict(), "iteration": iteration, "settings": kept})
            if (validates or last_step) and rank == 0 and not baseline:
                panel(net, batch, out / f"panel_{iteration:06d}.png", device)
            if validates or last_step:
                freeze(net, stage)                                   # predict and panel leave the network in eval mode
            if saves and rank == 0:
                save_last(optimizer)
            if world > 1 and (validates or saves):
                distributed.barrier()
    bar.close()
    if rank == 0:
        if best < 0:
            save(out / "best.pt", {"model": net.state_dict(), "iteration": iteration, "settings": kept})
        if curves := training_curves(out):
            curves.save(out / "curves.png")

    # ---------------------------------------------------------------- the demo's test table
    if rank == 0 and settings["data"] == "demo":
        net, _ = load_network(out / "best.pt", device)
        results = [evaluate(net, settings, "demo", settings["root"], quality, "test", settings["mask"], None, 32, device, settings["workers"],
                            not settings["no_amp"]) for quality in data.QUALITIES]
        (out / "test.json").write_text(json.dumps([{"settings": kept, "results": results}], indent=1) + "\n")
        print(f"\nTest split, trained on {settings['quality']}, weights of {out / 'best.pt'}; pictures: {out}/*.png")
        print(table(settings, results))
    elif rank == 0:
        print(f"done; test it: python evaluate.py --checkpoint {out / 'best.pt'} --data ff++ --root {settings['root']} "
              f"--quality {settings['quality']}")
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        data.stop("stopped; the same command with --resume goes on from the last save")
