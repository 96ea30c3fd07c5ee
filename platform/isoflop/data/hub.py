"""Which texts can be had by name from Hugging Face's hub, and read where there is no network?

    tinystories                   Eldan & Li 2023: 2 GB of children's stories by GPT-3.5 and GPT-4
    fineweb-edu                   Penedo et al. 2024: the sample of 10 billion tokens, 27 GB
    hf:NAME[/CONFIG][:SPLIT]      any data set: "hf:owner/name", "hf:owner/name/config:test"
    hf:FOLDER[:SPLIT]             a data set's folder, given by a path that begins with / or .

The first two are downloaded once, whole, and read as files. Any other is streamed (by the package
`datasets`, of the extra "hf"): nothing is stored, and nobody knows whether it changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data.documents import (
    Damage,
    Document,
    Part,
    Source,
    Stamp,
    kept,
    well_formed,
)

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"


@dataclass(frozen=True, kw_only=True)
class Download:
    """A data set whose files are fetched whole."""

    repository: str
    pattern: str  # of the files that are meant
    files: int  # that there are at least: fewer are an interrupted download
    licence: str  # SPDX


DOWNLOADS = {
    "tinystories": Download(
        repository="roneneldan/TinyStories",
        pattern="data/train-*.parquet",
        files=4,
        licence="CDLA-Sharing-1.0",
    ),
    "fineweb-edu": Download(
        repository="HuggingFaceFW/fineweb-edu",
        pattern="sample/10BT/*.parquet",
        files=14,
        licence="ODC-By-1.0",
    ),
}


def downloaded(name: str) -> list[Path]:
    """The files of a named data set, from the hub's cache on this machine or from the network.

    Raises ValueError that says what to do where neither has them.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(_package(name, "huggingface_hub")) from None

    wanted = DOWNLOADS[name]
    try:
        folder = snapshot_download(
            wanted.repository, repo_type="dataset", allow_patterns=wanted.pattern
        )
    except (OSError, ValueError) as error:  # no network, in all its forms, and nothing cached
        raise ValueError(_unreachable(name, wanted.repository, error)) from error
    found = sorted(Path(folder).glob(wanted.pattern))
    if len(found) < wanted.files:
        missing = FileNotFoundError(f"{len(found)} of {wanted.files} files are there")
        raise ValueError(_unreachable(name, wanted.repository, missing))
    return found


@dataclass(frozen=True, kw_only=True)
class Streamed(Source):
    """A data set of the hub, or a folder of the same form; its shards are the parts."""

    name: str
    path: str
    config: str | None
    split: str
    column: str

    @cached_property
    def data(self) -> datasets.IterableDataset:
        """Raises ValueError naming what is not there: data set, configuration, split, column."""
        data = _loaded(self)
        if data.column_names and self.column not in data.column_names:
            has = ", ".join(data.column_names)
            raise ValueError(
                f'data.source {self.name!r} has no column "{self.column}"; it has {has}'
            )
        return data

    def parts(self) -> list[Part]:
        count = self.data.num_shards
        return [StreamedPart(source=self, index=index, count=count) for index in range(count)]

    def stamp(self) -> list[Stamp] | None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "data"}


@dataclass(frozen=True, kw_only=True)
class StreamedPart(Part):
    """One shard of so many."""

    source: Streamed
    index: int
    count: int
    bytes: int = 0  # unknown

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.source.path}#{self.index}"

    def documents(self, log: Damage) -> Iterator[Document]:
        shard = self.source.data.shard(self.count, self.index)
        for row, values in enumerate(shard):
            name, text = f"{self.name}:{row}", values.get(self.source.column)
            if text is None:
                continue
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ValueError(f'{name}: column "{self.source.column}" is {kind}, not a string')
            yield from kept(name, well_formed(text), log)


def opened(name: str, column: str) -> Streamed:
    """The data set of "hf:...", found but not read.

    The hub has decoded its text already. Raises ValueError naming what is not there.
    """
    path, config, split = parsed(name)
    source = Streamed(name=name, path=path, config=config, split=split, column=column)
    assert source.data is not None  # looked up now, so that errors come early
    return source


def parsed(name: str) -> tuple[str, str | None, str]:
    """Path, configuration and split of "hf:...". One word, or two, are a name; a third configures.

    Raises ValueError for another form.
    """
    place, _, split = name.removeprefix(PREFIX).partition(":")
    if place.startswith(("/", ".")):
        return place, None, split or "train"
    words = place.split("/")
    if not 1 <= len(words) <= 3 or not all(words):
        raise ValueError(
            f"data.source is {name!r}; it must read hf:NAME, hf:OWNER/NAME or "
            "hf:OWNER/NAME/CONFIG, each perhaps with :SPLIT"
        )
    config = words[2] if len(words) == 3 else None
    return "/".join(words[:2]), config, split or "train"


def _loaded(source: Streamed) -> datasets.IterableDataset:
    try:
        import datasets
    except ImportError:
        raise ValueError(_package(source.name, "datasets")) from None

    def stream() -> datasets.IterableDataset:
        return datasets.load_dataset(source.path, source.config, split=source.split, streaming=True)

    def cached() -> datasets.IterableDataset:
        offline = datasets.DownloadConfig(local_files_only=True)
        found = datasets.load_dataset(
            source.path, source.config, split=source.split, download_config=offline
        )
        return found.to_iterable_dataset(num_shards=min(64, max(1, len(found) // 1000)))

    return _first(source, [stream, cached])


def _first(
    source: Streamed, ways: list[Callable[[], datasets.IterableDataset]]
) -> datasets.IterableDataset:
    """What the first way gives that does not end for want of a network."""
    for way in ways:
        try:
            return way()
        except (OSError, FileNotFoundError) as error:  # ConnectionError, and "not in the cache"
            reason = error
        except ValueError as error:  # datasets says which configurations or splits there are
            raise ValueError(f"data.source {source.name!r}: {error}") from error
    raise ValueError(_unreachable(source.name, source.path, reason)) from reason


def _package(name: str, package: str) -> str:
    return f"data.source {name!r} needs the package {package}: pip install 'isoflop[hf]'"


def _unreachable(name: str, repository: str, error: Exception) -> str:
    return (
        f"data.source {name!r} is the data set {repository} of huggingface.co, which is neither on "
        f"this machine nor to be fetched ({type(error).__name__}: {_first_line(error)}); fetch it "
        "where there is a network and set HF_HOME to that cache, or give the path of a text"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
