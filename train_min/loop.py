"""Train a student: one loop for all recipes, the same bytes every time on a CPU, taken up where it stopped.

A step is a function of the weights, the optimiser's moments and its own number: the batch, the generator and the
learning rate are all derived from (seed, step), so that the state to keep is small and a resumed training ends in the
same weights, bit for bit, as one that never stopped.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..catalogs.errors import DistdataError
from ..catalogs.files import exclusive_lock
from ..catalogs.hashing import bytes_hash, hash64
from .checkpoint import (
    CURVE,
    load_weights,
    network_weights,
    read_resume,
    read_student,
    remove_resume,
    student_weights,
    write_resume,
    write_student,
)
from .curves import Window, read_curve, write_curve
from .facts import find_facts
from .job import Batch, Fitting, Learner, Quiet, Trained, TrainJob, TrainReporter
from .loader import Batches, StoredSamples, read_ahead, sample_weights
from .quantise import INT8, write_int8
from .recipes import build_learner, resolve_settings

if TYPE_CHECKING:
    import torch

_COLLATED_AT_ONCE = 4096


def train(job: TrainJob, reporter: TrainReporter | None = None) -> Trained:
    """Train the job's student, or take the training up where it stopped, or return the student that is there.

    Raises:
        DistdataError: another job's student or state is in the folder, another process trains there, the settings or
            the frame don't fit the recipe, a sample is damaged, or the loss is no longer finite. What was saved stays.
        KeyboardInterrupt: Ctrl-C, after the state was saved; the same call goes on.
    """
    reporter = reporter or Quiet()
    settings = resolve_settings(job.recipe, job.settings)
    # the result depends on the samples, not on the order in which a query gave them
    frame = job.frame.sort("sample_id", maintain_order=True)
    identity = job_identity(job, frame, settings)
    busy = f"{job.out}: process {{holder}} is training here. Wait for it, or stop it: what it has saved is kept."
    with exclusive_lock(job.out / ".train.lock", busy):
        done = _finished(job, identity)
        if done is None:
            with fresh_randomness():
                done = _Training(job, frame, settings, identity, reporter).run()
        if settings["int8"] and read_student(job.out / INT8) is None:
            write_int8(job.out)
        remove_resume(job.out)
        return done


def job_identity(job: TrainJob, frame: pl.DataFrame, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two jobs the same: all that the weights depend on but the machine, as in ``student.json``."""
    teacher = job.header.get("teacher") or {}
    parent = None
    if job.parent is not None:
        header = read_student(job.parent)
        if header is None:
            raise DistdataError(f"{job.parent}: the parent is no finished student. Train it first, or leave it out.")
        parent = header["artefact"]
    elif settings["warm_start"]:
        raise DistdataError("warm_start = true, but there is no parent whose weights to begin with. Name one.")
    ids = "\n".join(frame["sample_id"].to_list())
    weights = sample_weights(frame, job.weights).astype("<f8").tobytes()
    clean = (frame["source"] == "clean").fill_null(False).to_numpy().tobytes()
    return {
        "family": job.recipe.family,
        "recipe": job.recipe.name,
        "settings": dict(settings),
        "teacher": {key: teacher.get(key) for key in ("id", "version", "content_hash")},
        "snapshot": job.header.get("snapshot_id"),
        "parent": parent,
        "seed": job.seed,
        "weights": job.weights,
        "samples": {"n": frame.height, "hash": bytes_hash([ids.encode(), weights, clean])},
    }


def _finished(job: TrainJob, identity: Mapping[str, Any]) -> Trained | None:
    """Return the student that lies in the job's folder, if it is this job's."""
    header = read_student(job.out)
    if header is None:
        return None
    _check_same(job, header, identity, "a finished student")
    return Trained(out=job.out, header=header, final_loss=_last_loss(job), fresh=False)


def _last_loss(job: TrainJob) -> float:
    losses = read_curve(job.out / CURVE)["loss"]
    return float(losses[-1]) if len(losses) else math.nan


def _check_same(job: TrainJob, there: Mapping[str, Any], identity: Mapping[str, Any], what: str) -> None:
    changed = []
    for key, value in identity.items():
        before = there.get(key)
        if key == "settings" and isinstance(before, Mapping):
            names = sorted(n for n in {*before, *value} if before.get(n) != value.get(n))
            changed += [f"{n} {before.get(n)!r} -> {value.get(n)!r}" for n in names]
        elif before != value:
            changed.append(f"{key} {_short(before)} -> {_short(value)}")
    if changed:
        raise DistdataError(
            f"{job.out} holds {what} of another job ({'; '.join(changed[:6])}). Train into another folder, or delete "
            "this one."
        )


def _short(value: object) -> str:
    return f"{value['n']:,} samples {value['hash']}" if isinstance(value, Mapping) and "hash" in value else repr(value)


def choose_device(name: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda; raises DistdataError for a GPU that is not there."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise DistdataError(f"device {name!r} is not known. Use auto, cpu or cuda.")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise DistdataError("device cuda: PyTorch finds no GPU here. Use auto or cpu.")
    return "cuda" if there and name != "cpu" else "cpu"


def make_learner(job: TrainJob, frame: pl.DataFrame, settings: Mapping[str, Any]) -> tuple[Learner, StoredSamples]:
    """Build the job's learner on the facts of `frame`, its first weights drawn from the job's seed."""
    facts = find_facts(job.storage, frame, job.recipe, job.header)
    seeded(hash64("train/init", job.seed) >> 1, "cpu")
    learner = build_learner(job.recipe, settings, facts)
    samples = StoredSamples(job.storage, frame, learner.members, cache_bytes=job.cache_bytes)
    if isinstance(learner, Fitting):
        learner.fit(iter(samples))
    return learner, samples


def seeded(seed: int, device: str) -> torch.Generator:
    """Return a generator of the device, and seed what a network draws by itself there (dropout, first weights).

    `torch.manual_seed` does the same for all kinds of devices, but takes a hundred times as long.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device == "cuda":
        torch.cuda.manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)


def learning_rate(step: int, settings: Mapping[str, Any]) -> float:
    """Return the rate of a step (from 0): linear warm-up, then half a cosine down to lr_final of lr."""
    warm = round(settings["warmup"] * settings["steps"])
    if step < warm:
        return float(settings["lr"] * (step + 1) / warm)
    along = (step - warm) / max(settings["steps"] - warm, 1)
    low = settings["lr_final"]
    return float(settings["lr"] * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * along))))


def ema_decay(step: int, settings: Mapping[str, Any]) -> float:
    """Return what the average keeps at a step (from 0): min(ema, (1 + step) / (10 + step)), so that it starts short."""
    return float(min(settings["ema"], (1 + step) / (10 + step)))


def blended_loss(losses: torch.Tensor, weight: torch.Tensor, clean: torch.Tensor, clean_share: float) -> torch.Tensor:
    """Return (1 - clean_share) mean over teacher draws + clean_share mean over clean samples, both weighted.

    All are [B]; every kind that counts must be in the batch.
    """
    if not 0 < clean_share < 1:
        return (weight * losses).sum() / weight.sum()
    total = losses.new_zeros(())
    for part, share in ((~clean, 1 - clean_share), (clean, clean_share)):
        w = weight * part
        total = total + share * (w * losses).sum() / w.sum()
    return total


class _Training:
    """One training from its first or its saved step to its student."""

    def __init__(
        self,
        job: TrainJob,
        frame: pl.DataFrame,
        settings: Mapping[str, Any],
        identity: Mapping[str, Any],
        reporter: TrainReporter,
    ) -> None:
        import torch

        self.job, self.settings, self.identity, self.reporter = job, settings, identity, reporter
        self.device = choose_device(job.device)
        saved = read_resume(job.out)
        if saved is not None:
            _check_same(job, saved[1]["job"], identity, f"the state at step {saved[1]['step']:,}")
        self.batches = Batches(
            frame, batch=settings["batch"], seed=job.seed, weights=job.weights, clean_share=settings["clean_share"]
        )
        self.learner, self.samples = make_learner(job, frame, settings)
        self.network = self.learner.network
        if settings["warm_start"] and job.parent is not None:
            load_weights(self.network, student_weights(job.parent), job.parent)
        self.network.to(self.device).train()
        named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(f"recipe {job.recipe.name}: its network has no parameters to train")
        self.names, self.parameters = [n for n, _ in named], [p for _, p in named]
        self.average = [p.detach().clone() for p in self.parameters]
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings["lr"], betas=(0.9, settings["beta2"]), fused=True
        )
        self.step, self.wall_s, self.rows, self.window = 0, 0.0, list[dict[str, Any]](), Window()
        if saved is not None:
            self._restore(*saved)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.saved_step = self.step

    def run(self) -> Trained:
        """Train from where it stands to the end, and write the student."""
        n_parameters = sum(p.numel() for p in self.parameters)
        steps = self.settings["steps"]
        self._tell_left_out()
        self.reporter.begin(
            recipe=self.job.recipe.name, steps=steps, done=self.step, n_samples=len(self.samples),
            n_parameters=n_parameters, device=self.device,
        )  # fmt: skip
        self._began = time.monotonic() - self.wall_s
        try:
            with _stop_signal() as stopped, contextlib.closing(self._batches()) as batches:
                self._go(batches, stopped)
            return self._finish()
        finally:
            self.reporter.end()

    def _tell_left_out(self) -> None:
        n_clean = int(self.samples.clean.sum())
        if n_clean and not self.batches.n_clean:
            self.reporter.note(f"{n_clean:,} clean samples are left out: clean_share is 0")
        if len(self.samples) > n_clean and not self.batches.n_teacher:
            self.reporter.note(f"{len(self.samples) - n_clean:,} teacher draws are left out: clean_share is 1")

    def _go(self, batches: Iterator[Batch], stopped: threading.Event) -> None:
        last_save = time.monotonic()
        every = self.job.save_every_steps
        for batch in batches:
            lr = self._one_step(batch)
            self.step += 1
            if self.step % self.settings["log_every"] == 0 or self.step == self.settings["steps"]:
                self._log(lr)
            if stopped.is_set():
                self._save()
                raise KeyboardInterrupt
            due = self.step % every == 0 if every else time.monotonic() - last_save >= self.job.save_every_s
            if due and self.step < self.settings["steps"]:
                self._save()
                last_save = time.monotonic()

    def _one_step(self, batch: Batch) -> float:
        """Make one step; theta <- AdamW(grad of the blended loss, clipped), average <- d average + (1 - d) theta."""
        import torch

        generator = seeded(hash64("train/step", self.job.seed, self.step) >> 1, self.device)
        lr = learning_rate(self.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses, values = self.learner.loss(batch, generator)
        if losses.shape != batch["weight"].shape:
            raise ValueError(f"loss of shape {tuple(losses.shape)}, want one per sample {tuple(batch['weight'].shape)}")
        loss = blended_loss(losses, batch["weight"], batch["clean"], self.settings["clean_share"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings["clip"])
        self.optimizer.step()
        with torch.no_grad():
            bad = ~(torch.isfinite(loss) & torch.isfinite(norm)) & (self.bad_step < 0)
            self.bad_step = torch.where(bad, self.step, self.bad_step)
            torch._foreach_lerp_(
                self.average, list[torch.Tensor](self.parameters), 1 - ema_decay(self.step, self.settings)
            )
        self.window.add({"loss": loss.detach().double(), "grad_norm": norm.detach().double(), **values})
        return lr

    def _log(self, lr: float) -> None:
        self._check_finite()
        means = self.window.means()
        loss = means.pop("loss")
        self.rows.append({"step": self.step, "loss": loss, "lr": lr, "wall_s": self._elapsed(), **means})
        self.reporter.advance(self.step, loss, lr, means)

    def _check_finite(self) -> None:
        """Stop when some step since the last look had a loss or a gradient that is no number."""
        bad = int(self.bad_step)
        if bad < 0:
            return
        lr = learning_rate(bad, self.settings)
        kept = f"the state at step {self.saved_step:,} stays" if self.saved_step else "no state was saved yet"
        raise DistdataError(
            f"{self.job.out}: the loss or its gradient was not finite at step {bad + 1:,} of "
            f"{self.settings['steps']:,} (lr {lr:.3g}). Nothing was written over; {kept}. Train into another folder "
            f"with a lower lr (lr = {self.settings['lr'] / 3:.2g}) or a longer warmup; if it stops at the same step "
            "again, look for extreme values in the samples."
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _batches(self) -> Generator[Batch, None, None]:
        """Yield the batches from the present step on, on the device."""
        steps = self.settings["steps"]
        if getattr(self.learner, "rowwise", False) and self._fits():
            return self._picked(self.step, steps)
        return self._streamed(self.step, steps)

    def _streamed(self, start: int, stop: int) -> Generator[Batch, None, None]:
        ahead = read_ahead(self.samples, self.batches.rows, self.learner.collate, start, stop, self.job.n_workers)
        with contextlib.closing(ahead) as batches:
            for batch in batches:
                yield {k: v.to(self.device) if hasattr(v, "to") else v for k, v in batch.items()}

    def _fits(self) -> bool:
        """Tell whether the collated corpus surely stays within the cache's bytes."""
        one = self.learner.collate([self.samples[0]])
        n_bytes = sum(v.numel() * v.element_size() for v in one.values())
        return bool(n_bytes * len(self.samples) <= self.job.cache_bytes)

    def _picked(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield batches picked by index from the corpus collated once."""
        import torch

        n = len(self.samples)
        parts = [
            self.learner.collate([self.samples[row] for row in range(at, min(at + _COLLATED_AT_ONCE, n))])
            for at in range(0, n, _COLLATED_AT_ONCE)
        ]
        corpus = {name: torch.cat([part[name] for part in parts]).to(self.device) for name in parts[0]}
        for step in range(start, stop):
            rows = torch.from_numpy(np.ascontiguousarray(self.batches.rows(step))).to(self.device)
            yield {name: tensor[rows] for name, tensor in corpus.items()}

    def _save(self) -> None:
        self._check_finite()
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            tensors[f"average.{name}"] = average
            state = self.optimizer.state[parameter]
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in state}
        tensors |= {f"network.{name}": tensor for name, tensor in network_weights(self.network).items()}
        state = {
            "job": dict(self.identity), "step": self.step, "steps": self.settings["steps"], "rows": self.rows,
            "window": self.window.state(), "wall_s": self._elapsed(),
        }  # fmt: skip
        write_resume(self.job.out, {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, state)
        self.saved_step = self.step

    def _restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        import torch

        part = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith("network.")}
        load_weights(self.network, part, self.job.out)
        with torch.no_grad():
            for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
                average.copy_(tensors[f"average.{name}"])
                keys = [key for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}.{name}" in tensors]
                if keys:
                    moments = {key: tensors[f"{key}.{name}"].to(self.device) for key in keys}
                    self.optimizer.state[parameter] = moments
        self.step, self.wall_s = int(state["step"]), float(state["wall_s"])
        self.rows, self.window = list(state["rows"]), Window(state["window"])

    def _finish(self) -> Trained:
        import torch

        self._check_finite()
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
        header = {
            **self.identity,
            "network": self.learner.describe(),
            "steps": self.settings["steps"],
            "precision": "float32",
        }
        write_curve(self.job.out / CURVE, self.rows)
        whole = write_student(self.job.out, network_weights(self.network), header)
        return Trained(out=self.job.out, header=whole, final_loss=self.rows[-1]["loss"], fresh=True)


@contextlib.contextmanager
def fresh_randomness() -> Iterator[None]:
    """Keep the caller's random state out of the training, and the training's out of the caller's."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that it stops between two steps; the second Ctrl-C stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
