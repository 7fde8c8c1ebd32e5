"""Is what `mixtune confirm` says true at the rate that it says, and what does it save to leave what is decided?

    python benchmarks/confirmation.py [--fields 300]

Fields of recipes are simulated, whose true accuracies are known: costs; accuracies that rise with the cost, that hardly
differ, or of which the cheap ones vary with the seed (three times as much); as many again are far worse, as a search
has them. An image is classified rightly with a probability that has the recipe's quality in it, the image's difficulty,
what recipe and image have together, the seed's luck, and the recipe's with that seed (a probit model, in which the true
accuracy over all images and seeds has a closed form). A search judges every recipe by one seed and one set of
validation images; its front is trained on fresh seeds and judged on the same images, as `mixtune confirm` does it.
mixtune's own functions say then how probably each is on the front; `flat prior` is what version 0.1 said: each row's
mean and a pooled standard error. Results go to benchmarks/results/confirmation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from mixtune.run.confirmed import ON_FRONT
from mixtune.run.estimates import estimate
from mixtune.run.paired import covariance_of_means
from mixtune.run.posterior import certainties, contenders, draw_truth

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RESULTS = Path(__file__).parent / "results" / "confirmation.md"
KINDS = ("rising", "flat", "noisy cheap rows")
IMAGES = (300, 1_000, 4_000)
SEEDS = (3, 5, 10)
RECIPES = 24  # of a search, and half as many far worse ones
IMAGE, BOTH, SEED = 1.5, 0.7, 0.016  # standard deviations of a probit: image, recipe and image, seed
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0 + 1e-9)
TOLERANCE, UNTIL, MAX_SEEDS = 0.01, 0.95, 10


@dataclass
class Field:
    """A search's recipes, the cheapest first.

    costs, truth: (recipes,); right: (recipes, seeds + 1, images), the search's own seed first, NaN where a recipe was
    not trained; front: those that are confirmed.
    """

    costs: Floats
    truth: Floats
    right: Floats
    front: npt.NDArray[np.int64]


def make_field(kind: str, images: int, seeds: int, rng: np.random.Generator) -> Field:
    """Return a field whose front is trained on so many fresh seeds."""
    count = RECIPES + RECIPES // 2
    costs = np.sort(np.exp(rng.uniform(np.log(10), np.log(200), count)))
    place = np.log(costs / 10) / np.log(20)
    level = {
        "rising": 0.75 + 0.15 * (1 - np.exp(-2.5 * place)) / (1 - np.exp(-2.5)) + rng.normal(0, 0.012, count),
        "flat": 0.85 + rng.normal(0, 0.003, count),
        "noisy cheap rows": 0.82 + 0.04 * place + rng.normal(0, 0.008, count),
    }[kind]
    level[rng.permutation(count)[RECIPES:]] -= rng.uniform(0.05, 0.4, count - RECIPES)
    deviation = np.where((kind == "noisy cheap rows") & (place < 0.4), 0.025, 0.008)
    deviation = deviation * np.exp(rng.normal(0, 0.25, count))
    total = np.sqrt(1 + IMAGE**2 + BOTH**2)
    quality = norm.ppf(level) * total
    luck = deviation / norm.pdf(norm.ppf(level)) * total
    truth = norm.cdf(quality / np.sqrt(total**2 + luck**2 + SEED**2))
    difficulty = rng.normal(0, IMAGE, images) + rng.normal(0, BOTH, (count, images))
    right = np.full((count, seeds + 1, images), np.nan)

    def train(recipes: Sequence[int], seed: int) -> None:
        shared = rng.normal(0, SEED)
        for k in recipes:
            chance = norm.cdf(quality[k] + shared + rng.normal(0, luck[k]) + difficulty[k])
            right[k, seed] = rng.random(images) < chance

    train(range(count), 0)
    found = right[:, 0].mean(axis=1)
    front = np.flatnonzero(found > np.concatenate([[-1.0], np.maximum.accumulate(found)[:-1]]))
    for seed in range(1, seeds + 1):
        train(list(front), seed)
    return Field(costs, truth, right, front)


def posterior(field: Field, seeds: Sequence[int], near: float = 0.1) -> Floats:
    """Return draws of the front's true accuracies, (draws, front), as mixtune.run.confirmed makes them.

    seeds: how many fresh ones each row of the front has.
    """
    right = field.right.copy()
    for row, count in zip(field.front, seeds, strict=True):
        right[row, 1 + count :] = np.nan
    found = right[:, 0].mean(axis=1)
    taken = np.flatnonzero((found >= found.max() - near) | np.isin(np.arange(len(found)), field.front))
    runs = [own[np.isfinite(own[:, 0])] for own in right[taken]]
    drawn = draw_truth(right[taken].mean(axis=2), covariance_of_means(runs), field.costs[taken])
    return drawn[:, np.searchsorted(taken, field.front)]


def flat_prior(field: Field, seeds: Sequence[int]) -> Floats:
    """Return draws by each row's mean over fresh seeds and a pooled standard error."""
    means = [field.right[row, 1 : 1 + count].mean(axis=1) for row, count in zip(field.front, seeds, strict=True)]
    return estimate(means, relative=False).draw(np.random.default_rng(0))


def on_front(accuracies: Floats) -> Bools:
    """Return, (draws, rows), what no cheaper row is as good as; rows: the cheapest first."""
    before = np.maximum.accumulate(accuracies, axis=1)[:, :-1]
    return np.concatenate([np.ones((len(accuracies), 1), dtype=bool), accuracies[:, 1:] > before], axis=1)


def members(drawn: Floats) -> Bools:
    """Return, (front,), which rows mixtune.run.confirmed shows as on the front."""
    probable = on_front(drawn).mean(axis=0)
    return np.asarray(probable >= min(ON_FRONT, probable.max()))


def recommended(drawn: Floats) -> tuple[int, float]:
    """Return the place of the row that mixtune.run.recommendation would choose, and how probably it is right."""
    right = certainties(drawn.max(axis=1, keepdims=True) - drawn, TOLERANCE)
    place = int(np.where(members(drawn), right, -1.0).argmax())
    return place, float(right[place])


@dataclass(frozen=True)
class Race:
    """How a race ended.

    said: how probably what it recommends is right; is_right: whether it is; lacking: of the best row's true accuracy;
    trained: training runs; rightly: for each row but the cheapest whether it is rightly on or off the front; by_means:
    whether it would be if the front were what no row's mean beats.
    """

    said: float
    is_right: bool
    lacking: float
    trained: int
    rightly: Bools
    by_means: Bools


def race(field: Field, leaves: bool) -> Race:
    """Train seed after seed until the answer is certain; leaves: whether rows that are decided train no more."""
    racing = np.ones(len(field.front), dtype=bool)
    seeds = np.zeros(len(field.front), dtype=int)
    said, place, drawn = 0.0, 0, np.empty((0, len(field.front)))
    for number in range(MAX_SEEDS):
        seeds[racing] += 1
        if number < 1:
            continue
        drawn = posterior(field, list(seeds))
        place, said = recommended(drawn)
        if said >= UNTIL:
            break
        if leaves:
            racing &= contenders(drawn.max(axis=1, keepdims=True) - drawn, TOLERANCE, 1 - UNTIL)
    truth = field.truth[field.front]
    is_right = bool(certainties((truth.max() - truth)[None], TOLERANCE)[place])
    means = np.array([field.right[row, 1 : 1 + count].mean() for row, count in zip(field.front, seeds, strict=True)])
    is_on = on_front(truth[None])[0]
    by_means = (on_front(means[None])[0] == is_on)[1:]
    lacking, trained = float(truth.max() - truth[place]), int(seeds.sum())
    return Race(said, is_right, lacking, trained, (members(drawn) == is_on)[1:], by_means)


def calibration(fields: int) -> Iterator[str]:
    """Yield the lines of the table: how often what is said with a probability is true."""
    yield "| field | seeds | who says it | " + " | ".join(f"said {p} %" for p in (10, 30, 50, 70, 90)) + " | fell off |"
    yield "|---|---|---|" + "---|" * 6
    pooled: dict[str, list[tuple[Floats, Bools]]] = {}
    for kind in KINDS:
        for seeds in SEEDS:
            rng = np.random.default_rng([KINDS.index(kind), seeds])
            said: dict[str, list[tuple[Floats, Bools]]] = {}
            for number in range(fields):
                field = make_field(kind, IMAGES[number % len(IMAGES)], seeds, rng)
                counts = [seeds] * len(field.front)
                true = on_front(field.truth[field.front][None])[0, 1:]
                for name, draw in (("mixtune", posterior), ("flat prior", flat_prior)):
                    said.setdefault(name, []).append((on_front(draw(field, counts)).mean(axis=0)[1:], true))
            for name, pairs in said.items():
                yield _row(f"{kind} | {seeds} | {name}", pairs)
                pooled.setdefault(name, []).extend(pairs)
    for name, pairs in pooled.items():
        yield _row(f"**all** | | {name}", pairs)


def _row(head: str, pairs: Sequence[tuple[Floats, Bools]]) -> str:
    """Return a line: the mean of what was said and how often it was true, by fifths, and of what fell off."""
    said, true = (np.concatenate([pair[which] for pair in pairs]) for which in (0, 1))
    cells = [_cell(said, true, (said >= low) & (said < high)) for low, high in pairwise(EDGES)]
    return f"| {head} | {' | '.join([*cells, _cell(said, true, said < 0.05)])} |"


def _cell(said: Floats, true: Bools, where: Bools) -> str:
    if not where.any():
        return "-"
    return f"{100 * said[where].mean():.0f}: {100 * true[where].mean():.0f} ({where.sum()})"


def races(fields: int) -> Iterator[str]:
    """Yield the lines of the table: how certain races end, how often they are right, and what they train."""
    heads = ["field", "rows", "until certain", "training runs", "said", "right", "below the best", "never certain"]
    yield f"| {' | '.join([*heads, 'rightly on or off the front (by means)'])} |"
    yield "|---" * 9 + "|"
    pooled: dict[str, list[Race]] = {}
    for kind in KINDS:
        rng = np.random.default_rng(KINDS.index(kind))
        made = [make_field(kind, IMAGES[n % len(IMAGES)], MAX_SEEDS, rng) for n in range(fields)]
        rows = np.mean([len(field.front) for field in made])
        run: Callable[[Field, bool], Race] = race
        for name, leaves in (("all rows train", False), ("decided rows are left", True)):
            ended = [run(field, leaves) for field in made]
            pooled.setdefault(name, []).extend(ended)
            yield _race_row(f"{kind} | {rows:.1f} | {name}", ended)
    for name, ended in pooled.items():
        yield _race_row(f"**all** | | {name}", ended)


def _race_row(head: str, ended: Sequence[Race]) -> str:
    said, right = np.mean([each.said for each in ended]), np.mean([each.is_right for each in ended])
    certain = [each for each in ended if each.said >= UNTIL]
    of_certain = f" (of certain ones {100 * np.mean([e.is_right for e in certain]):.0f})" if certain else ""
    trained = np.mean([each.trained for each in ended])
    lacking, rest = 100 * np.mean([each.lacking for each in ended]), 100 * (1 - len(certain) / len(ended))
    rightly = 100 * np.concatenate([each.rightly for each in ended]).mean()
    by_means = 100 * np.concatenate([each.by_means for each in ended]).mean()
    cells = [f"{trained:.1f}", f"{100 * said:.0f} %", f"{100 * right:.0f} %{of_certain}", f"{lacking:.2f} points"]
    return f"| {head} | {' | '.join([*cells, f'{rest:.0f} %', f'{rightly:.0f} % ({by_means:.0f} %)'])} |"


def main() -> None:
    """Simulate, print and keep both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=300, help="simulated for each row of the tables")
    fields = parser.parse_args().fields
    lines = [
        f"# What `confirm` says, and how often it is true ({date.today().isoformat()})",
        "",
        f"`python benchmarks/confirmation.py --fields {fields}`: see there for what is simulated.",
        "",
        "Rows of a front with the probability of being on the true front; the mean of what was said (%): how often it",
        "was true (how many rows). The cheapest row, which always is on it, is left out.",
        "",
    ]
    print("\n".join(lines), flush=True)
    for line in chain(calibration(fields), [""], _race_words(), races(fields // 3)):
        lines.append(line)
        print(line, flush=True)
    RESULTS.write_text("\n".join(lines) + "\n")


def _race_words() -> Iterator[str]:
    yield f"Races until {100 * UNTIL:.0f} % certain, at most {MAX_SEEDS} seeds: right is what is within a point of the"
    yield "best while nothing cheaper is within half a point. On the front is what is on it more probably than not; by"
    yield "means: what no row's mean beats."
    yield ""


if __name__ == "__main__":
    main()
