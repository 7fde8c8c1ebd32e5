"""How good a backbone's frozen features are: nearest neighbours and a linear probe, fitted to training images.

Features are what the classifier would read, of images without augmentation. All is computed on the CPU but the features
themselves, in float32 or better and with a random stream of its own: no bit of a training run depends on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtune.training.data import ImagePool
from mixtune.training.evaluation import EVALUATION_BATCH
from mixtune.training.state import Classifier, TrainState
from mixtune.training.streams import torch_generator

MAX_IMAGES = 10_000  # labelled ones of a task that features are compared with: of more, so many are drawn
NEIGHBOURS = 20  # as DINO (Caron et al. 2021)
TEMPERATURE = 0.07  # of their weights (Wu et al. 2018)
MAX_ITERATIONS = 200  # of L-BFGS
QUERIES = 256  # images that are compared at once


def measure_representation(
    state: TrainState, before_batch: Callable[[], None] = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Return each task's accuracy on its held-out images by what the recipe's ``representation`` names: knn, probe.

    NaN where a task has no held-out images, and where a feature is not finite.
    """
    state.backbone.eval()
    judges = {"knn": knn_classes, "probe": probe_classes}
    found: dict[str, list[float]] = {name: [] for name in sorted(set(state.recipe.representation))}
    for task, classifier in zip(state.data.tasks, state.classifiers, strict=True):
        assert isinstance(classifier, Classifier)
        chosen = task.train.indices
        if len(chosen) > MAX_IMAGES:
            order = torch.randperm(len(chosen), generator=torch_generator(state.recipe.seed, "representation"))
            chosen = chosen[order[:MAX_IMAGES].sort().values.to(chosen.device)]
        features = _features(state, classifier, task.train, chosen, before_batch)
        queries = _features(state, classifier, task.held_out, task.held_out.indices, before_batch)
        labels, truth = _labels(task.train, chosen), _labels(task.held_out, task.held_out.indices)
        usable = len(queries) > 0 and bool(features.isfinite().all() and queries.isfinite().all())
        for name, accuracies in found.items():
            right = judges[name](features, labels, queries) == truth if usable else torch.tensor([torch.nan])
            accuracies.append(right.double().mean().item())
    return {name: tuple(accuracies) for name, accuracies in found.items()}


def knn_classes(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Return the class of each query, int64 (Q,), by the labelled features next to it.

    features: float32 (N, D) of labels int64 (N,); queries: float32 (Q, D). The NEIGHBOURS of the greatest cosine
    similarity s vote with exp(s / TEMPERATURE) for their class (Wu et al. 2018, "Unsupervised feature learning via
    non-parametric instance discrimination", Section 3.4).
    """
    known, classes = F.normalize(features, dim=1), int(labels.max()) + 1
    found = []
    for part in torch.split(F.normalize(queries, dim=1), QUERIES):
        similarity, nearest = (part @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)  # (B, k)
        votes = torch.zeros(len(part), classes, dtype=torch.float64)
        votes.scatter_add_(1, labels[nearest], (similarity.double() / TEMPERATURE).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def probe_classes(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Return the class of each query, int64 (Q,), by a multinomial logistic regression on standardised features.

    features: float32 (N, D) of labels int64 (N,); queries: float32 (Q, D). The weights' penalty is scikit-learn's
    default, C = 1; after MAX_ITERATIONS it is taken as it is.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if bool((labels == labels[0]).all()):  # there is nothing to tell apart
        return labels[:1].expand(len(queries))
    scaler, probe = StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(scaler.fit_transform(features.double().numpy()), labels.numpy())
    return torch.from_numpy(probe.predict(scaler.transform(queries.double().numpy())))


@torch.no_grad()
def _features(
    state: TrainState, classifier: Classifier, pool: ImagePool, chosen: Tensor, before_batch: Callable[[], None]
) -> Tensor:
    """Return what a classifier reads of a pool's images, float32 (N, D) on the CPU."""
    found = []
    for part in torch.split(chosen, EVALUATION_BATCH):
        before_batch()
        with state.autocast():
            found.append(classifier.pooled(state.backbone.forward(pool.plain(part))).float().cpu())
    return torch.cat(found)


def _labels(pool: ImagePool, chosen: Tensor) -> Tensor:
    assert pool.labels is not None
    return pool.labels[chosen].cpu()
