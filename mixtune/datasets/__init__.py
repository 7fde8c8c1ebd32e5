"""Datasets: from a name to uint8 arrays, decoded once, cached, shared between trials.

`load_dataset` is the way in. A file in this folder without a leading underscore is a plug-in; its name is
the dataset's name, unless it lists names of its own with ``dataset_names() -> list[str]`` (as
torchvision_sets does). A plug-in says where the undecoded images are (`Parts`) and how to tell that they
changed (a fingerprint); sizes, channels, the held-out test part, errors about single images and the cache
are common code. Someone else's plug-in is an object in any module, used as ``dataset: my_scans:Scans``::

    import numpy as np
    from mixtune.datasets import Part, Parts, Source, digest_files

    class Scans:
        @staticmethod
        def fingerprint(source: Source) -> str:
            return digest_files([source.root / "scans.npz"], source.root)

        @staticmethod
        def read(source: Source) -> Parts:
            held = np.load(source.root / "scans.npz")
            train = Part(held["x"], held["y"])  # uint8 (N, H, W) or (N, H, W, C); integers (N,)
            return Parts(train, test=None, classes=("benign", "malignant"), mirror=True)

`Part.images` may as well be a list of paths, or anything with a length that gives item i: a path, a file's bytes, a
PIL image or an array, decoded when its turn comes; `to_parts` makes Parts of what Python has. ``test=None`` with labels
holds out a stratified fifth; ``val`` are images to validate by; images of one of ``Part.groups`` stay together;
``labels=None`` makes a set for self-supervised learning only.
"""

from mixtune.datasets._cache import statistics
from mixtune.datasets._convert import to_parts
from mixtune.datasets._files import digest_files, image_files
from mixtune.datasets._find import find_data
from mixtune.datasets._load import (
    cache_folder,
    clean_cache,
    default_root,
    known_datasets,
    load_dataset,
    read_parts,
    same_source,
)
from mixtune.datasets._memory import hold_dataset
from mixtune.datasets._mix import mix_images
from mixtune.datasets._same import matches
from mixtune.datasets._split import absent_classes, check_split, split_indices
from mixtune.datasets._survey import SKIPPING, UNEVEN, Survey, count_dataset, original_images, survey_dataset
from mixtune.datasets._types import (
    DEFAULT_READING,
    Account,
    Dataset,
    Images,
    ImageSet,
    Part,
    Parts,
    Plugin,
    Reading,
    Source,
)
from mixtune.datasets.arrays import write_parts
from mixtune.datasets.manifest import is_manifest, read_table

__all__ = [
    "DEFAULT_READING",
    "SKIPPING",
    "UNEVEN",
    "Account",
    "Dataset",
    "ImageSet",
    "Images",
    "Part",
    "Parts",
    "Plugin",
    "Reading",
    "Source",
    "Survey",
    "absent_classes",
    "cache_folder",
    "check_split",
    "clean_cache",
    "count_dataset",
    "default_root",
    "digest_files",
    "find_data",
    "hold_dataset",
    "image_files",
    "is_manifest",
    "known_datasets",
    "load_dataset",
    "matches",
    "mix_images",
    "original_images",
    "read_parts",
    "read_table",
    "same_source",
    "split_indices",
    "statistics",
    "survey_dataset",
    "to_parts",
    "write_parts",
]
