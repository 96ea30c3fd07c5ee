"""How does a run's text become token files, once for all runs?

    parts -> scan -> duplicates, split by content -> tokenizer (of the training side) -> encode

Everything is cached by content: a text that moved or was touched is prepared already, and one that
changed is another text. The source is read three times (to scan, to train, to encode) and never
held: what is kept in memory is some 60 bytes a document. Reading goes unit by unit, on as many
processes as are given, and what a unit became is on disk, so that a process that was killed at any
moment is continued by the next. Below the cache folder:

    FINGERPRINT/       train.*, validation.* (see `shards`), encoding.json, prepared.json
    tokenizers/KEY/    encoding.json, by the training text and the vocabulary size
    seen/KEY.json      the fingerprint that files of just these sizes and times had
    scans/KEY/         what a scan noted (see `scan`), until the text is prepared
    work/FINGERPRINT/  finished units (see `encode`), until all are
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from isoflop.data import encode, remote, shards, sources, tokenizers
from isoflop.data.corpus import Corpus
from isoflop.data.documents import Damage, Source
from isoflop.data.folders import only_one, room, whole
from isoflop.data.meter import Lines, Meter, Say, megabytes
from isoflop.data.options import Asked, Means, Options, choices
from isoflop.data.overlap import Overlap, overlap
from isoflop.data.prepared import Prepared, is_prepared
from isoflop.data.scan import Scan, Scanned, scan, units
from isoflop.data.shards import Origin
from isoflop.data.tokenizers import Tokenizer, Trainer

__all__ = ["Prepared", "prepare", "prepare_to"]

DEFAULTS = Options()
FORMAT = 2  # of what lies in the cache, but for FINGERPRINT/

# Times on disk tick, so a file changed within the last ones may look as it did before.
_SETTLED_NS = 2 * 10**9


def prepare(
    text: Asked,
    cache: Path,
    progress: Say | None = None,
    *,
    options: Options = DEFAULTS,
    means: Means | None = None,
) -> Prepared:
    """The text as token files, from the cache where it holds them; `progress` is told each step.

    A source that is a folder which `prepare_to` filled is taken as it is, and one at a URL copied.

    Raises ValueError for a tokenizer or source that is not there, a text too small to split, and a
    text that changes meanwhile; OSError for a disk that is full, when finished units are kept.
    """
    means = means or Means(meter=Lines(progress or (lambda line: None)))
    if is_prepared(Path(text.source).expanduser()):
        return _as_it_is(text, Path(text.source).expanduser())
    if remote.is_url(text.source):
        say, limit = means.meter.say, means.remote_limit
        return _as_it_is(text, remote.fetched(text.source, cache, limit=limit, say=say))
    trainer = tokenizers.trainer(text.tokenizer)
    how = trainer or tokenizers.named(text.tokenizer)
    source = sources.open(text.source, column=options.column, undecodable=options.undecodable)
    if source.ready and (trainer or options.near_duplicates is not None):
        raise ValueError(
            f"data.source {text.source!r} holds token ids, not text: name the tokenizer that made "
            f"them in place of {text.tokenizer!r}, and look for no near-duplicates"
        )
    listing = _listing(text, options, source)
    seen = cache / "seen" / f"{listing}.json"
    known = _remembered(seen, cache)
    if known is not None:
        return known
    with room(cache), only_one(cache / "scans" / listing, means.meter.say):
        return _remembered(seen, cache) or _prepared(
            _Wanted(text=text, options=options, source=source, cache=cache, listing=listing),
            how,
            means,
        )


def prepare_to(
    out: Path, text: Asked, *, options: Options = DEFAULTS, means: Means | None = None
) -> Prepared:
    """The text as token files in the folder `out`, which must not hold another one yet.

    What is on the way is in .OUT.work beside it, and goes when `out` is whole.
    """
    out = out.absolute()
    work = out.with_name(f".{out.name}.work")
    means = means or Means()
    with only_one(out, means.meter.say):
        if is_prepared(out):
            return _the_same(out, text, options)
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty, and holds no prepared text: choose another one")
        made = prepare(text, work, options=options, means=means)
        if made.folder.parent != work:
            raise ValueError(f"{made.folder} is a prepared text already; there is nothing to do")
        if out.exists():
            out.rmdir()
        os.rename(made.folder, out)
        shutil.rmtree(work)
    return Prepared.load(out)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is to be prepared, and where."""

    text: Asked
    options: Options
    source: Source
    cache: Path
    listing: str

    @property
    def scans(self) -> Path:
        return self.cache / "scans" / self.listing


def _prepared(wanted: _Wanted, how: Tokenizer | Trainer, means: Means) -> Prepared:
    """Scan, split, train a vocabulary where there is none yet, encode."""
    started = time.time_ns()
    try:
        corpus = _scanned(wanted, means)
        trained = _trained(corpus, how, wanted, means) if isinstance(how, Trainer) else how
        prepared = _built(corpus, trained, wanted, means)
    except ValueError:  # perhaps the text changed since it was scanned: look again next time
        shutil.rmtree(wanted.scans, ignore_errors=True)
        raise
    shutil.rmtree(wanted.scans)
    # Remembered only if the files stood still before and after they were read.
    text, stamp = wanted.text, wanted.source.stamp()
    again = sources.open(
        text.source, column=wanted.options.column, undecodable=wanted.options.undecodable
    )
    if (
        stamp is not None
        and wanted.listing == _listing(text, wanted.options, again)
        and max(max(entry[-2:]) for entry in stamp) < started - _SETTLED_NS
    ):
        seen = wanted.cache / "seen" / f"{wanted.listing}.json"
        seen.parent.mkdir(parents=True, exist_ok=True)
        shards.write_json(seen, {"fingerprint": prepared.fingerprint})
    return prepared


def _scanned(wanted: _Wanted, means: Means) -> Corpus:
    """Every unit looked at, what it holds told, and its documents split."""
    source, options, scans = wanted.source, wanted.options, wanted.scans
    if source.stamp() is None:  # a stream may have changed, and nobody would know
        shutil.rmtree(scans, ignore_errors=True)
    scans.mkdir(parents=True, exist_ok=True)
    found = units(source.parts(), source.ready)
    size = sum(unit.bytes for unit in found)
    near = options.near_duplicates
    means.meter.begin("reading", size)
    scanned: list[Scanned] = []
    jobs = (Scan(unit, scans, near is not None) for unit in found)
    for one in means.on(size)(scan, jobs):
        means.meter.advance(one.bytes)
        scanned.append(one)
    scanned.sort(key=lambda one: one.number)
    damage = Damage()
    for one in scanned:
        damage.add(one.damage)
    if not any(one.documents for one in scanned):
        reason = "; ".join(damage.lines())
        raise ValueError(
            f"data.source {wanted.text.source!r} holds no text{reason and f': {reason}'}"
        )
    corpus = Corpus.of(
        wanted.text.source,
        options.licence or source.licence,
        found,
        scans,
        share=wanted.text.validation,
        keep_duplicates=options.keep_duplicates,
        near_duplicates=near,
        damage=damage,
    )
    for line in corpus.lines():
        means.meter.say(line)
    return corpus


def _trained(corpus: Corpus, trainer: Trainer, wanted: _Wanted, means: Means) -> Tokenizer:
    key = f"{corpus.train_hash()} {trainer.key}"
    target = wanted.cache / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:16]
    with only_one(target, means.meter.say):
        if target.exists():
            return tokenizers.load(target)
        means.meter.say(f"training a vocabulary ({trainer.name}) on {megabytes(corpus.trained_on)}")
        means.meter.begin("training", corpus.trained_on)
        tokenizer = trainer.train(_told(corpus.train(), means.meter))
        with whole(target) as folder:
            tokenizers.save(tokenizer, folder)
    return tokenizer


def _told(texts: Iterator[str], meter: Meter) -> Iterator[str]:
    for text in texts:
        meter.advance(len(text.encode()))
        yield text


def _built(corpus: Corpus, tokenizer: Tokenizer, wanted: _Wanted, means: Means) -> Prepared:
    content = f"{corpus.hash()} {tokenizer.hash}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    origin = Origin(fingerprint, tokenizer.hash)
    target = wanted.cache / fingerprint
    with only_one(target, means.meter.say):
        if target.exists():
            try:
                return Prepared.load(target)
            except ValueError as error:
                means.meter.say(f"{error}; preparing it again")
                shutil.rmtree(target)
        work = wanted.cache / "work" / fingerprint
        work.mkdir(parents=True, exist_ok=True)
        tokenizers.save(tokenizer, work)
        done = _encoded(corpus, origin, work, means)
        with whole(target) as folder:
            prepared = _joined(corpus, tokenizer, origin, work, folder, done)
            details = {**corpus.details(), "choices": choices(wanted.text, wanted.options)}
            prepared.save({**details, "overlap": asdict(_overlap(prepared, means.meter))})
        shutil.rmtree(work)
    prepared = Prepared.load(target)
    means.meter.say(
        f"prepared {prepared.train_tokens:,} tokens, and {prepared.validation_tokens:,} held out"
    )
    return prepared


def _encoded(corpus: Corpus, origin: Origin, work: Path, means: Means) -> list[encode.Encoded]:
    """Every unit encoded, in their order; those that an earlier process finished are taken."""
    jobs = (
        encode.Encode(assigned=assigned, folder=work, origin=origin)
        for assigned in corpus.assigned()
    )
    means.meter.begin("encoding", corpus.bytes)
    done = []
    for one in means.on(corpus.bytes)(encode.encode, jobs):
        means.meter.advance(one.read)
        done.append(one)
    return sorted(done, key=lambda one: one.number)


def _overlap(prepared: Prepared, meter: Meter) -> Overlap:
    train, validation = prepared.train(), prepared.validation()
    each = max(1, prepared.train_bytes) / len(train)
    meter.begin("comparing both sides", prepared.train_bytes)
    return overlap(train, validation, each, lambda tokens: meter.advance(round(tokens * each)))


def _joined(
    corpus: Corpus,
    tokenizer: Tokenizer,
    origin: Origin,
    work: Path,
    folder: Path,
    done: list[encode.Encoded],
) -> Prepared:
    """Fill a folder with both sides' token files and the tokenizer; the manifest is to come."""
    train, held_out = (
        encode.assemble(work, folder, side, done, origin, tokenizer.vocab_size)
        for side in encode.SIDES
    )
    tokenizers.save(tokenizer, folder)
    return Prepared(
        folder=folder,
        fingerprint=origin.fingerprint,
        tokenizer_name=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        vocab=tokenizer.vocab_size,
        share=corpus.share,
        train_tokens=train.tokens,
        validation_tokens=held_out.tokens,
        train_bytes=sum(one.bytes["train"] for one in done),
        validation_bytes=sum(one.bytes["validation"] for one in done),
        train_documents=train.documents,
        validation_documents=held_out.documents,
    )


def _as_it_is(text: Asked, folder: Path) -> Prepared:
    """A source that was prepared by hand. Raises ValueError where it is not what is asked for."""
    prepared = Prepared.load(folder.absolute())
    trainer = tokenizers.trainer(text.tokenizer)  # which knows that bpe-2k is bpe-2048
    asked = trainer.name if trainer else text.tokenizer
    for what, found, wanted in (
        ("data.tokenizer", prepared.tokenizer_name, asked),
        ("data.validation", prepared.share, text.validation),
    ):
        if found != wanted:
            raise ValueError(
                f"{what} is {wanted!r}, but {text.source!r} was prepared with {found!r}; "
                "say so too, or prepare the text again"
            )
    return prepared


def _the_same(out: Path, text: Asked, options: Options) -> Prepared:
    """What `out` holds. Raises ValueError where it is of other choices than these."""
    prepared = Prepared.load(out)
    wanted, found = choices(text, options), prepared.details()["choices"]
    # What an earlier release did not note is at its default.
    differing = [name for name in wanted if wanted[name] != found.get(name)]
    if differing:
        raise ValueError(
            f"{out} holds a text that was prepared with "
            f"{', '.join(f'{name} {found.get(name)!r}' for name in differing)}; "
            "choose another folder, or delete this one"
        )
    return prepared


def _remembered(seen: Path, cache: Path) -> Prepared | None:
    """What was prepared from files that looked just like this, if it is still there and whole."""
    try:
        fingerprint = str(json.loads(seen.read_bytes())["fingerprint"])
        return Prepared.load(cache / fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # then the long way decides, and repairs or complains


def _listing(text: Asked, options: Options, source: Source) -> str:
    """Hash of every file's place, size and times; equal only if no file was written in between."""
    trainer = tokenizers.trainer(text.tokenizer)
    lines = [FORMAT, trainer and trainer.key, choices(text, options), source.stamp()]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]
