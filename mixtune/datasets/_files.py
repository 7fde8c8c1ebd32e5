"""Folders of image files: what is in them, whether it changed, and what to say where it is not there."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mixtune.errors import RequestError, printable, suggest

PARTS = ("train", "val", "test")
TABLES = (".csv", ".jsonl", ".parquet", ".tsv")
TABLE_NAMES = ("metadata", "labels", "label", "annotations", "manifest", "dataset", "data", "index", "images")
_PART = re.compile(
    r"(?:(?:seg|imgs?|images?|data|dataset|labels|metadata|annotations)[-_. ]?)?"
    r"(?:(?P<train>train|training)|(?P<val>val|valid|validation|dev)|(?P<test>test|testing)"
    r"|(?P<unused>pred|predict|predictions?|unlabell?ed))"
    r"(?:[-_. ]?(?:sets?|data|dataset|imgs?|images?|split|part|folder|files|labels|metadata|annotations|samples?)){0,2}"
    r"(?:[-_. ]?(?:19|20)\d\d)?",
    re.IGNORECASE,
)

HEIC = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
# Pillow's formats that are read, each in this process alone: PostScript, for one, would start another program
FORMATS = (
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO"),
    *("IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
)
_KNOWN_OTHERS = re.compile(  # never opened to see whether they are images after all
    r"\.(?:7z|aac|arrow|aux|avi|bib|bz2|c|cfg|conf|cpp|css|csv|db|dcm|docx?|eps|gz|h|h5|hdf5?|html?|ini|ipynb|jar|js|json"
    r"|jsonl|lnk|lock|log|m4a|m4v|mat|md|md5|mkv|mov|mp[34]|mpe?g|ndjson|nii|np[yz]|odt|old|onnx|parquet|part|pdf|pickle"
    r"|pkl|pptx?|ps|pth?|pyc?|rar|rst|safetensors|sh|sha1|sha256|sqlite|svg|tar|tex|tfrecord|tgz|toml|torrent|tsv|txt|url"
    r"|wav|webm|wmv|xlsx?|xml|xz|ya?ml|zip)"
)
_JUNK = frozenset(
    {
        *("$recycle.bin", "#recycle", "@eadir", "@tmp", "__macosx", "__pycache__", "lost+found"),
        *("system volume information", "desktop.ini", "ehthumbs.db", "icon\r", "picasa.ini", "thumbs.db"),
    }
)
_MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftypavi[fs]"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|8BPS\0\x01|qoif|DDS |P[1-6]\s+[#\d]",
    re.DOTALL,
)
_HEIC_MAGIC = re.compile(rb".{4}ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)


@dataclass(eq=False)
class Folder:
    """What a folder holds, read once: folders and files without those that operating systems leave behind.

    files: what may be an image, by name; left_out: how many others there are, by suffix.
    """

    path: Path
    folders: list[Folder] = field(default_factory=list)
    files: list[os.DirEntry[str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @functools.cached_property
    def images(self) -> list[Path]:
        """The image files in this folder itself, by name. Files with an unknown suffix are looked into."""
        images = []
        for entry in self.files:
            suffix = _suffix(entry.name)
            kind = "image" if suffix in _image_suffixes() else "heic" if suffix in HEIC else _look_into(entry)
            if kind == "image" or (kind == "heic" and reads_heic()):
                images.append(Path(entry.path))
            else:
                self.left_out[".heic" if kind == "heic" else suffix or "no suffix"] += 1
        return images

    @functools.cached_property
    def total(self) -> int:
        """How many images there are in and below this folder."""
        return len(self.images) + sum(folder.total for folder in self.folders)

    @property
    def full(self) -> list[Folder]:
        """The folders in this one that have images, at whatever depth."""
        return [folder for folder in self.folders if folder.total]

    def all_images(self) -> list[Path]:
        """Return the image files in and below this folder, in one order on every machine: that of their paths."""
        if not self.folders:
            return self.images
        named: list[tuple[str, list[Path]]] = [(path.name, [path]) for path in self.images]
        named += [(folder.name, folder.all_images()) for folder in self.folders]
        return [path for _, paths in sorted(named) for path in paths]

    def all_left_out(self) -> Counter[str]:
        """Return how many files are left out in and below this folder, by suffix."""
        _ = self.images
        return sum((folder.all_left_out() for folder in self.folders), Counter(self.left_out))

    def without(self, paths: Collection[Path]) -> Folder:
        """Return this folder without the folders at ``paths``, wherever below it they are."""
        if not any(path != self.path and path.is_relative_to(self.path) for path in paths):
            return self
        kept = [folder.without(paths) for folder in self.folders if folder.path not in paths]
        return Folder(self.path, kept, self.files, Counter(self.left_out))

    def stamps(self) -> Iterator[str]:
        """Yield each file's path below this folder, size and time."""
        for folder in self._walk():
            above = "" if folder is self else f"{folder.path.relative_to(self.path)}/"
            for entry in folder.files:
                yield f"{above}{entry.name}\0{stamp(entry)}"

    def has_heic(self) -> bool:
        """Return whether a file is called HEIC, so that reading depends on what is installed."""
        return any(_suffix(entry.name) in HEIC for folder in self._walk() for entry in folder.files)

    def _walk(self) -> Iterator[Folder]:
        yield self
        for folder in self.folders:
            yield from folder._walk()


def read_folder(path: Path, *, nested: bool = True) -> Folder:
    """Return what is in ``path`` and, if ``nested``, below it; links are followed, but not in a circle.

    Hidden folders are left out silently, and so is what operating systems leave behind (``.DS_Store``, ``@eaDir``).
    """
    return _read(str(path), os.path.realpath(path), frozenset(), nested)


def part_of(name: str) -> str | None:
    """Return the part that a folder or file of this name usually holds: train, val, test, or unused; None: no part."""
    match = _PART.fullmatch(name)
    return match.lastgroup if match else None


def require_folder(folder: Path, key: str = "data.root") -> None:
    """Raise RequestError where ``folder`` is not a folder, naming the closest existing sibling."""
    if folder.is_dir():
        return
    if folder.exists():
        raise RequestError(f"{key} {folder} is a file, not a folder")
    missing = folder
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    where = "" if missing == folder else f" (there is no {missing})"
    raise RequestError(f"{key} {folder} does not exist{where}{suggest(missing.name, siblings)}")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder: Path, *, nested: bool = True) -> list[Path]:
    """Return the image files in ``folder`` and, if ``nested``, below it, in one order on every machine.

    Files are told by their suffix, and by their first bytes where Pillow does not know it; hidden files and folders are
    left out, links are followed.
    """
    return read_folder(folder, nested=nested).all_images()


def digest_files(files: Iterable[Path], root: Path) -> str:
    """Return a digest of the files' paths below ``root``, sizes and modification times."""
    return digest_lines(f"{path.relative_to(root)}\0{stamp(path)}" for path in files)


def digest_lines(lines: Iterable[str]) -> str:
    """Return a digest of lines of text, which may hold names that are not UTF-8."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@functools.cache
def reads_heic() -> bool:
    """Return whether Pillow can read HEIC, which takes the package pillow-heif, and let it do so."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def name_some(names: Iterable[str], limit: int = 20) -> str:
    """Return names as text, quoted; after ``limit`` of them, how many more there are.

    Bytes that are not UTF-8 are shown as ``\\xe9``.
    """
    known = [printable(name.encode(errors="surrogateescape").decode(errors="backslashreplace")) for name in names]
    more = f" and {len(known) - limit:,} more" if len(known) > limit else ""
    return ", ".join(f"'{name}'" for name in known[:limit]) + more


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Return FORMATS as far as this Pillow has them."""
    from PIL import Image

    reads_heic()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def _image_suffixes() -> frozenset[str]:
    from PIL import Image

    readable = {*known_formats(), "MPO"}  # an MPO is opened as the JPEG that it begins with
    return frozenset(suffix for suffix, form in Image.EXTENSION.items() if form in readable) - HEIC


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _look_into(entry: os.DirEntry[str]) -> str | None:
    try:
        if not entry.is_file():  # a pipe would wait for ever
            return None
        with open(entry.path, "rb") as file:
            start = file.read(32)
    except OSError:
        return None
    return "image" if _MAGIC.match(start) else "heic" if _HEIC_MAGIC.match(start) else None


def stamp(file: Path | os.DirEntry[str]) -> str:
    """Return a file's size and modification time as text."""
    try:
        stat = os.stat(file)  # a DirEntry's own stat() would keep all of it: 600 bytes a file
    except FileNotFoundError:  # a link to nowhere: decoding it will name it
        return "missing"
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def _read(path: str, real: str, above: frozenset[str], nested: bool) -> Folder:
    folder = Folder(Path(path))
    with os.scandir(path) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.lower() in _JUNK:
            continue
        if entry.is_dir():
            below = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            if nested and not entry.name.startswith(".") and below != real and below not in above:
                folder.folders.append(_read(entry.path, below, above | {real}, nested))
        elif entry.name.startswith("."):
            if not entry.name.startswith("._") and _suffix(entry.name) in _image_suffixes():
                folder.left_out["hidden file"] += 1
        elif _KNOWN_OTHERS.fullmatch(_suffix(entry.name)):
            folder.left_out[_suffix(entry.name)] += 1
        else:
            folder.files.append(entry)
    return folder
