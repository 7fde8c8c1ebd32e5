"""Algorithm 1: a generator that trains an epoch and yields what it measured; it knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtune.errors import TrainingError, one_line
from mixtune.meter.lock import DeviceLock
from mixtune.meter.windows import Meter, OnWindow
from mixtune.training.device import peak_memory_mb
from mixtune.training.evaluation import measure_scores
from mixtune.training.optimizer import set_rates
from mixtune.training.plan import Epoch
from mixtune.training.representation import measure_representation
from mixtune.training.state import EpochResult, TrainState
from mixtune.training.streams import torch_generator

INFERENCE_STEPS = 30  # three to warm up, three windows of six, and some to make a disturbed one again


class DivergedError(TrainingError):
    """A loss became NaN or infinite."""


def train(state: TrainState, on_window: OnWindow = lambda *_: None) -> Iterator[EpochResult]:
    """Train the epochs that the state has not seen yet, yielding after each; the state is whole at every yield.

    What state.step_times lacks is measured meanwhile, alone on the device, and ``on_window`` receives it; the device is
    shared with other training runs of this machine, but never held while this generator waits for its caller.
    Raises DivergedError, naming epoch, step and phase, at the end of an epoch with a NaN or infinite loss.
    """
    meter = Meter(DeviceLock.of(state.device), state.step_times, on_window)
    plan = state.plan
    if len(state.history) == len(plan):
        if state.recipe.representation and len(plan) not in state.representation:
            with meter.lock.shared():
                _measure_representation(state, meter.lock, len(plan))
        time_inference(state, meter)
        state.step_times.fix(state.bill.signatures())
    for epoch in plan[len(state.history) :]:
        crosses_boundary = epoch.index > 0 and plan[epoch.index - 1].phase != epoch.phase
        if crosses_boundary and not state.recipe.optim.carry_state:
            state.optimizer.state.clear()
        result = _train_epoch(state, epoch, meter, last=epoch == plan[-1])
        state.history.append(result)
        if epoch == plan[-1]:
            state.step_times.fix(state.bill.signatures())
        yield result


def _measure_representation(state: TrainState, lock: DeviceLock, epochs: int) -> float:
    """Note what frozen features are worth now, after so many epochs, where the recipe asks; return the seconds."""
    if not state.recipe.representation:
        return 0.0
    started, waited = time.perf_counter(), lock.waited
    state.representation[epochs] = measure_representation(state, lock.offer)
    return time.perf_counter() - started - (lock.waited - waited)


@torch.no_grad()
def time_inference(state: TrainState, meter: Meter) -> None:
    """Measure what one image takes from pixels to class, alone on the device, where state.step_times lacks it."""
    signature = state.bill.infer
    if not state.step_times.wanted(signature):
        return
    task = state.data.tasks[0]
    state.backbone.eval()
    with meter.epoch(signature, INFERENCE_STEPS):
        for step in range(INFERENCE_STEPS):
            meter.boundary(step)
            with state.autocast():
                state.classifiers[0](state.backbone.forward(task.train.plain(task.train.indices[:1])))


def phase_losses(
    state: TrainState, epoch: Epoch, images: Tensor, labels: Tensor | None, masks: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, SSL loss, SL loss) of one step; the last two are means over the tasks, 0 where there is none.

    images: (V * T * B, C, H, W), V views; labels: (T, B), None in the SSL phase. In the mix phase one backbone pass
    serves both losses: alpha * SSL + (1 - alpha) * SL (Eq. 3). Of several tasks the losses are summed (Section 2.2.3).
    """
    assert (labels is None) == (epoch.phase == "ssl")
    tasks = len(state.classifiers)
    none = images.new_zeros(())
    with state.autocast():
        if labels is None:
            ssl_loss, _ = state.objective(state.backbone, images, masks, joint=False, strategy=epoch.strategy)
            return tasks * ssl_loss, ssl_loss, none
        if epoch.phase == "sl":
            sl_loss = _classification_loss(state, state.backbone(images), labels)
            return tasks * sl_loss, none, sl_loss
        ssl_loss, tokens = state.objective(state.backbone, images, masks, joint=True, strategy=epoch.strategy)
        sl_loss = _classification_loss(state, tokens, labels)
        alpha = state.recipe.alpha
        return tasks * (alpha * ssl_loss + (1.0 - alpha) * sl_loss), ssl_loss, sl_loss


def _classification_loss(state: TrainState, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the tasks of their cross-entropies; tokens (T * B, ...) and labels (T, B).

    Under class weights a task's is the weighted mean, by the sum of the batch's weights as in F.cross_entropy: a batch
    with a rare image is no larger a step than another.
    """
    parts = zip(state.classifiers, tokens.chunk(len(labels)), labels, state.class_weights, strict=True)
    losses = [F.cross_entropy(classifier(part), y, weights) for classifier, part, y, weights in parts]
    return torch.stack(losses).mean()


def train_step(
    state: TrainState, epoch: Epoch, images: Tensor, labels: Tensor | None, masks: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step at the rates that are set; return (SSL loss, SL loss), still on the device."""
    loss, ssl_loss, sl_loss = phase_losses(state, epoch, images, labels, masks)
    loss.backward()  # type: ignore[no-untyped-call]
    if epoch.ssl_epoch is not None:
        for parameter in state.objective.frozen(state.backbone, epoch.ssl_epoch):
            parameter.grad = None
    state.optimizer.step()
    state.optimizer.zero_grad()
    if epoch.phase != "sl":
        state.objective.after_step(state.backbone)
    return ssl_loss.detach(), sl_loss.detach()


def _train_epoch(state: TrainState, epoch: Epoch, meter: Meter, last: bool) -> EpochResult:
    steps, lock = state.data.steps_of(epoch.phase), meter.lock
    waited = lock.waited
    with lock.shared():
        validation_seconds = _measure_representation(state, lock, epoch.index) if epoch.is_first_supervised else 0.0
        compile_seconds = compile_phase(state, epoch)
        masks = torch_generator(state.recipe.seed, "masks", epoch.index, state.device)
        losses = torch.zeros(steps, 2, device=state.device)  # SSL, SL; read once, after the epoch
        state.backbone.train()
        started, waited_before = time.perf_counter(), lock.waited
        with meter.epoch(state.bill.epochs[epoch.index][1], steps):
            batches = state.data.batches(state.recipe, epoch)
            for step in range(steps):
                meter.boundary(step)
                images, labels = next(batches)
                set_rates(state.optimizer, state.recipe, epoch, step, steps)
                losses[step, 0], losses[step, 1] = train_step(state, epoch, images, labels, masks)
        measured = losses.cpu()  # waits for the device
        trained = time.perf_counter()
        seconds = trained - started - (lock.waited - waited_before)
        _refuse_divergence(measured, epoch)
        waited_before = lock.waited
        scores = measure_scores(state, before_batch=lock.offer) if epoch.phase != "ssl" else None
        validation_seconds += time.perf_counter() - trained - (lock.waited - waited_before)
        if last:
            validation_seconds += _measure_representation(state, lock, epoch.index + 1)
            time_inference(state, meter)
    ssl_mean, sl_mean = measured.mean(dim=0).tolist()
    return EpochResult(
        epoch=epoch.index + 1,
        phase=epoch.phase,
        ssl_loss=None if epoch.phase == "sl" else ssl_mean,
        sl_loss=None if epoch.phase == "ssl" else sl_mean,
        scores=scores,
        steps=steps,
        seconds=seconds,
        compile_seconds=compile_seconds,
        validation_seconds=validation_seconds,
        waiting_seconds=lock.waited - waited,
        peak_memory_mb=peak_memory_mb(state.device),
    )


def compile_phase(state: TrainState, epoch: Epoch) -> float:
    """Compile the first step of a phase and strategy in this process, where the recipe asks for it; return the seconds.

    The step's gradients are dropped and its masks are drawn aside, so the state stays as it was. Raises TrainingError
    where there is no compiler.
    """
    if not state.recipe.compile or epoch.work in state.compiled:
        return 0.0
    started = time.perf_counter()
    if not state.compiled:
        state.backbone.compile()
        state.objective.compile()
    state.backbone.train()
    images, labels = next(state.data.batches(state.recipe, epoch))
    masks = torch_generator(state.recipe.seed, "masks", epoch.index, state.device)
    try:
        loss, _, _ = phase_losses(state, epoch, images, labels, masks)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TrainingError(f"torch.compile failed ({one_line(error)}): set compile: false") from error
    state.optimizer.zero_grad()
    state.compiled.add(epoch.work)
    return time.perf_counter() - started


def _refuse_divergence(losses: Tensor, epoch: Epoch) -> None:
    """Raise DivergedError at the first step whose losses (steps, 2) are not all finite."""
    bad = (~losses.isfinite().all(dim=1)).nonzero()
    if len(bad):
        step = int(bad[0])
        value = losses[step][~losses[step].isfinite()][0].item()
        raise DivergedError(f"the loss is {value} in epoch {epoch.index + 1} ({epoch.phase} phase), step {step + 1}")
