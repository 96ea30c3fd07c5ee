"""How does a run's text become token files, once for all runs?

    documents -> split by content -> tokenizer (trained on the training side only) -> token files

Everything is cached by content: a text that moved or was touched is prepared already, and one that
changed is another text. The source is read three times (to split, to train, to encode) and never
held, so memory stays flat. Below the cache folder:

    FINGERPRINT/     train.*, validation.* (see `isoflop.data.shards`), encoding.json, prepared.json
    tokenizers/KEY/  encoding.json, by the training text and the vocabulary size
    seen/KEY.json    the fingerprint that files of just these sizes and times had
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock

from isoflop.data import bpe, shards, sources, tokenizers
from isoflop.data.shards import TokenFile
from isoflop.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    from isoflop.run import Text  # its module imports torch, which text does not need

FORMAT = 1
MANIFEST = "prepared.json"
Side = Literal["train", "validation"]
Progress = Callable[[str], None]

# Times on disk tick, so a file changed within the last ones may look as it did before.
_SETTLED_NS = 2 * 10**9


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A text as token files. Paths and numbers only: cheap to send to a worker."""

    folder: Path
    fingerprint: str  # hash of the content, the split and the tokenizer; not of where the text lies
    tokenizer_name: str
    vocab: int
    train_tokens: int  # the end of text after each document included
    validation_tokens: int
    train_bytes: int  # of UTF-8 text
    validation_bytes: int
    train_documents: int
    validation_documents: int

    @staticmethod
    def load(folder: Path) -> Prepared:
        """What `prepare` left in a folder. Raises ValueError naming what is missing or damaged."""
        manifest = folder / MANIFEST
        try:
            values = json.loads(manifest.read_bytes())
            if values.pop("format") != FORMAT:
                raise ValueError("it has another format")
            prepared = Prepared(folder=folder, **values)
        except FileNotFoundError:
            raise ValueError(f"{manifest} is missing: no text was prepared here") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{manifest} is not what isoflop wrote ({error!r})") from error
        prepared.train()
        prepared.validation()
        return prepared

    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder)

    def train(self) -> TokenFile:
        return TokenFile.open(self.folder, "train")

    def validation(self) -> TokenFile:
        return TokenFile.open(self.folder, "validation")


def prepare(text: Text, cache: Path, progress: Progress | None = None) -> Prepared:
    """The text as token files, from the cache where it holds them; `progress` is told each step.

    Raises ValueError for a tokenizer or source that is not there, a text too small to split, and a
    text that changes meanwhile.
    """
    say = progress or (lambda message: None)
    size = tokenizers.trained_size(text.tokenizer)
    ready = None if size else tokenizers.named(text.tokenizer)
    seen = cache / "seen" / f"{_listing(text)}.json"
    known = _remembered(seen, cache)
    if known is not None:
        return known
    started = time.time_ns()
    sizes = _sizes(text.source, say)
    split = _split(sizes, text.validation)
    source = _Source(text.source, sizes, split)
    tokenizer = ready or _trained(source, size or 0, cache, say)
    prepared = _built(source, tokenizer, cache, say)
    # Remembered only if the files stood still before and after they were read.
    if seen.stem == _listing(text) and _newest(text.source) < started - _SETTLED_NS:
        seen.parent.mkdir(parents=True, exist_ok=True)
        shards.write_json(seen, {"fingerprint": prepared.fingerprint})
    return prepared


@dataclass(frozen=True)
class _Split:
    """Which documents are held out, and which one is cut where whole ones do not make the share."""

    share: float
    validation: frozenset[bytes]
    cut: bytes | None
    tail: float  # share of the cut document that is held out


class _Source:
    """A text, once read, that can be read again, and is found out if it changed since."""

    def __init__(self, name: str, sizes: dict[bytes, int], split: _Split) -> None:
        self.name = name
        self.sizes = sizes
        self.split = split
        self.bytes = sum(sizes.values())

    def pieces(self) -> Iterator[tuple[Side, str]]:
        """Every document once, with its side; a document that is cut gives two."""
        expected = set(self.sizes)
        for document in sources.documents(self.name):
            digest = _digest(document.text)
            if digest not in self.sizes:
                raise ValueError(f"{document.name} in {self.name!r} changed while it was prepared")
            if digest not in expected:
                continue  # a duplicate
            expected.remove(digest)
            if digest == self.split.cut:
                head, tail = _cut(document.text, self.split.tail)
                yield "train", head
                yield "validation", tail
            else:
                yield "validation" if digest in self.split.validation else "train", document.text
        if expected:
            raise ValueError(
                f"{len(expected)} documents of {self.name!r} went while it was prepared"
            )

    def train(self) -> Iterator[str]:
        return (text for side, text in self.pieces() if side == "train")

    def hash(self) -> str:
        """Of all content in its order, and of the split."""
        content = hashlib.sha256(f"{FORMAT} {self.split.share!r}".encode())
        for digest in self.sizes:
            content.update((b"v" if digest in self.split.validation else b"t") + digest)
        return content.hexdigest()

    def train_hash(self) -> str:
        """Of what is trained on."""
        content = hashlib.sha256(f"{FORMAT} {self.split.cut!r} {self.split.tail!r}".encode())
        for digest in self.sizes:
            if digest not in self.split.validation:
                content.update(digest)
        return content.hexdigest()


def _sizes(source: str, say: Progress) -> dict[bytes, int]:
    """Every different document by its digest, in their order, with its bytes of UTF-8."""
    sizes: dict[bytes, int] = {}
    skipped: list[str] = []
    count = 0
    for document in sources.documents(source, skipped):
        count += 1
        content = document.text.encode()
        sizes.setdefault(hashlib.sha256(content).digest(), len(content))
    if count > len(sizes):
        say(f"left out {count - len(sizes)} documents that are equal to another")
    if skipped:
        say(f"left out {len(skipped)} files that could not be decoded, such as {skipped[0]}")
    return sizes


def _split(sizes: dict[bytes, int], share: float) -> _Split:
    """Hold out documents in the order of their digests, as random as the content and as repeatable,
    until they make the share; one of which more than half would overshoot it is passed over.

    If that leaves more than half of the share open (a few books, say, or a single one), the end of
    the largest other document fills it.
    """
    wanted = share * sum(sizes.values())
    chosen: set[bytes] = set()
    held = 0
    for digest in sorted(sizes):
        if held + sizes[digest] / 2 <= wanted:
            chosen.add(digest)
            held += sizes[digest]
    if len(chosen) == len(sizes):  # something must be left to train on
        held -= sizes[max(chosen)]
        chosen.remove(max(chosen))
    if 2 * held >= wanted:
        return _Split(share, frozenset(chosen), None, 0.0)
    largest = max(sizes.keys() - chosen, key=lambda digest: (sizes[digest], digest))
    return _Split(share, frozenset(chosen), largest, (wanted - held) / sizes[largest])


def _cut(text: str, tail: float) -> tuple[str, str]:
    """A text before and after the last line end that leaves `tail` of it, or there without one."""
    place = int(len(text) * (1 - tail))
    line = text.rfind("\n", 0, place) + 1
    head, rest = text[: line or place], text[line or place :]
    if not head.strip() or not rest.strip():
        raise ValueError(
            f"the text ({len(text)} characters) is too small to hold out a part of it for "
            "validation; give more text, or a larger data.validation"
        )
    return head, rest


def _trained(source: _Source, size: int, cache: Path, say: Progress) -> Tokenizer:
    key = hashlib.sha256(f"{source.train_hash()} {size} {bpe.PATTERN}".encode()).hexdigest()[:16]
    target = cache / "tokenizers" / key
    with _only_one(target):
        if target.exists():
            return tokenizers.load(target)
        say(f"training a byte-pair vocabulary of {size} on {_megabytes(source.bytes)}")
        tokenizer = bpe.train(source.train(), size)
        with _whole(target) as folder:
            tokenizers.save(tokenizer, folder)
    return tokenizer


def _built(source: _Source, tokenizer: Tokenizer, cache: Path, say: Progress) -> Prepared:
    content = f"{source.hash()} {tokenizer.hash}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    target = cache / fingerprint
    with _only_one(target):
        if target.exists():
            try:
                return Prepared.load(target)
            except ValueError as error:
                say(f"{error}; preparing it again")
                shutil.rmtree(target)
        with _whole(target) as folder:
            _encode(source, tokenizer, folder, fingerprint, say)
    return Prepared.load(target)


def _encode(
    source: _Source, tokenizer: Tokenizer, folder: Path, fingerprint: str, say: Progress
) -> None:
    """Fill a folder with both sides' token files, the tokenizer, and at last the manifest."""
    end = np.array([tokenizer.end_of_text], dtype=np.uint32)
    dtype = shards.dtype_for(tokenizer.vocab_size)
    sizes: dict[Side, int] = {"train": 0, "validation": 0}
    report = _every_second(say)
    with ExitStack() as stack:
        writers = {side: stack.enter_context(shards.Writer(folder, side, dtype)) for side in sizes}
        for side, text in source.pieces():
            writers[side].append(np.concatenate([tokenizer.encode(text), end]))
            sizes[side] += len(text.encode())
            report(f"encoded {_megabytes(sum(sizes.values()))} of {_megabytes(source.bytes)}")
    tokenizers.save(tokenizer, folder)
    prepared = Prepared(
        folder=folder,
        fingerprint=fingerprint,
        tokenizer_name=tokenizer.name,
        vocab=tokenizer.vocab_size,
        train_tokens=writers["train"].tokens,
        validation_tokens=writers["validation"].tokens,
        train_bytes=sizes["train"],
        validation_bytes=sizes["validation"],
        train_documents=writers["train"].documents,
        validation_documents=writers["validation"].documents,
    )
    values = {name: value for name, value in asdict(prepared).items() if name != "folder"}
    shards.write_json(folder / MANIFEST, {"format": FORMAT, **values})
    say(f"prepared {prepared.train_tokens:,} tokens, and {prepared.validation_tokens:,} held out")


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """One process at a time; the others wait, and then find the target made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to fill, that becomes `target` only when the block ends well.

    The lock is held, so what an earlier process left half-done is nobody's and goes.
    """
    for stale in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(stale)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is the owner's alone, and a cache may be shared
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _remembered(seen: Path, cache: Path) -> Prepared | None:
    """What was prepared from files that looked just like this, if it is still there and whole."""
    try:
        fingerprint = str(json.loads(seen.read_bytes())["fingerprint"])
        return Prepared.load(cache / fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # then the long way decides, and repairs or complains


def _listing(text: Text) -> str:
    """Hash of every file's place, size and times; equal only if no file was written in between."""
    lines: list[Any] = [FORMAT, bpe.PATTERN, text.source, text.tokenizer, text.validation]
    for file in sources.files(text.source):
        status = file.path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        lines.append((str(file.path.absolute()), status.st_ino, status.st_size, *times))
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


def _newest(source: str) -> int:
    """The latest change of any file, in nanoseconds since 1970."""
    times = (file.path.stat() for file in sources.files(source))
    return max(max(status.st_mtime_ns, status.st_ctime_ns) for status in times)


def _every_second(say: Progress) -> Progress:
    last = time.monotonic()

    def report(message: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            say(message)

    return report


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
