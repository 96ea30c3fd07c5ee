"""What was predicted before a run began, and how did it turn out?

A prediction is a file that is written once, `<study>/predictions/<run>.json`, with the hash of its
own content and of the rows it was fitted to. It is scored when the run has ended; over all of a
storage, the share of intervals that held says how far to trust the next one. A file whose content
no longer has its hash is named and not scored.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoflop.scaling.gain import believe
from isoflop.scaling.interval import BITS, LEVEL, NATS, Refusal
from isoflop.scaling.isoflop import families, finished
from isoflop.scaling.parametric import fit
from isoflop.scaling.ranking import SIZE, points

FOLDER = "predictions"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The loss of one run, said before it began."""

    study: str
    run: str  # identity
    label: str
    family: str
    size: float
    tokens: float
    flops: float
    loss: float
    low: float  # of the 95 % prediction interval: law, misfit and noise
    high: float
    form: str
    fitted: int  # runs
    rows: str  # sha256 of the fitted rows
    written: str  # UTC, ISO 8601
    unit: str = NATS  # of the losses
    hash: str = field(default="", compare=False)  # sha256 of all the above

    @property
    def digest(self) -> str:
        content = asdict(self)
        del content["hash"]
        if self.unit == NATS:  # files from before there was another unit keep their hash
            del content["unit"]
        return hashlib.sha256(_canonical(content)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How a prediction turned out. `loss` None: the run has no final loss (yet, or it diverged)."""

    prediction: Prediction
    loss: float | None
    genuine: bool  # the file still has the content that was hashed

    @property
    def inside(self) -> bool | None:
        if self.loss is None or not self.genuine:
            return None
        return self.prediction.low <= self.loss <= self.prediction.high

    @property
    def error(self) -> float | None:
        """Measured less predicted, in the prediction's unit."""
        return None if self.loss is None else self.loss - self.prediction.loss

    @property
    def relative(self) -> float | None:
        return None if self.loss is None else self.loss / self.prediction.loss - 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All genuine predictions of a storage whose runs have ended."""

    scored: int
    inside: int
    error: float  # mean of |measured / predicted - 1|
    bias: float  # mean of measured / predicted - 1
    chance: float  # of so few inside, or fewer, if every interval held with 95 %
    altered: int  # predictions whose file was changed after it was written
    open: int  # predictions whose run has no loss


def predict(
    study: str,
    done: pd.DataFrame,
    waiting: pd.DataFrame,
    *,
    family: str | None = "axis.arch",
    size: str = SIZE,
    unit: str = NATS,
) -> tuple[list[Prediction], dict[str, Refusal]]:
    """The losses of the runs `waiting`, by the laws of the finished runs among `done`, which are
    other runs. Families whose runs fix no law are refused. Both are run tables; `unit` is that of
    the losses of `done`."""
    runs = finished(done)
    runs = runs[~runs["run"].isin(waiting["run"])]
    known, wanted = families(runs, family), families(waiting, family)
    found, refused = list[Prediction](), dict[str, Refusal]()
    for name in sorted(set(wanted)):
        group, ahead = runs[known == name], waiting[wanted == name]
        law = _lawful(group, size)
        if law is not None:
            refused[name] = law
            continue
        belief = believe(points(group, size), np.log(group["loss"].to_numpy(float)))
        log_loss, width = (
            belief.predict(points(ahead, size))[0],
            belief.half_width(points(ahead, size)),
        )
        rows = _rows(group, size)
        for row, level, half in zip(ahead.to_dict("records"), log_loss, width, strict=True):
            values = {"study": study, "family": name, "fitted": len(group), "rows": rows}
            values["unit"] = unit
            found.append(
                _prediction({str(k): v for k, v in row.items()}, values, size, level, half)
            )
    return found, refused


def _lawful(group: pd.DataFrame, size: str) -> Refusal | None:
    """Why these runs fix no law: then a prediction would be the prior's alone."""
    if not len(group):
        return Refusal("too few points", "no smaller run has finished", "finish some")
    law = fit(*(group[name].to_numpy(float) for name in (size, "tokens", "loss")))
    return law if isinstance(law, Refusal) else None


def _prediction(
    row: Mapping[str, Any], values: dict[str, Any], size: str, level: float, half: float
) -> Prediction:
    prediction = Prediction(
        run=str(row["run"]),
        label=str(row["label"]),
        size=float(row[size]),
        tokens=float(row["tokens"]),
        flops=float(row["flops"]),
        loss=float(np.exp(level)),
        low=float(np.exp(level - half)),
        high=float(np.exp(level + half)),
        form="chinchilla",
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        **values,
    )
    return replace(prediction, hash=prediction.digest)


def register(folder: Path, prediction: Prediction) -> bool:
    """Writes the prediction into a study's folder, whole or not at all. False if one is there: the
    first word counts."""
    path = folder / FOLDER / f"{prediction.run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(prediction), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o444)
        os.link(temporary, path)  # fails where the name is taken, which replace would not
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    return True


def read(folder: Path) -> list[Prediction]:
    """The predictions of a study, oldest first. Raises ValueError for a file that is none."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            found.append(Prediction(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no prediction: {error}") from None
    return sorted(found, key=lambda prediction: (prediction.written, prediction.run))


def score(predictions: Sequence[Prediction], losses: Mapping[str, float]) -> list[Scored]:
    """Each with what its run reached, by identity."""
    return [
        Scored(prediction=p, loss=losses.get(p.run), genuine=p.hash == p.digest)
        for p in predictions
    ]


def losses(folder: Path, unit: str = NATS) -> dict[str, float]:
    """What the finished runs of a study's folder reached, by identity."""
    field = {NATS: "loss", BITS: "bits_per_byte"}[unit]
    found = {}
    for path in folder.glob("runs/*/result.json"):
        try:
            values = json.loads(path.read_text())
        except ValueError:
            continue  # being written
        if values.get("status") == "finished" and values.get(field) is not None:
            found[path.parent.name] = float(values[field])
    return found


def scores(folder: Path) -> list[Scored]:
    """Every prediction of a study's folder, each in its own unit."""
    known = read(folder)
    reached = {unit: losses(folder, unit) for unit in {p.unit for p in known}}
    return [
        s for unit in reached for s in score([p for p in known if p.unit == unit], reached[unit])
    ]


def calibration(scored: Sequence[Scored]) -> Calibration | None:
    """Over all that are given; None without a prediction."""
    if not scored:
        return None
    from scipy.special import bdtr

    ended = [s for s in scored if s.inside is not None]
    inside = sum(bool(s.inside) for s in ended)
    errors = np.array([s.relative for s in ended if s.relative is not None])
    return Calibration(
        scored=len(ended),
        inside=inside,
        error=float(np.abs(errors).mean()) if len(errors) else float("nan"),
        bias=float(errors.mean()) if len(errors) else float("nan"),
        chance=float(bdtr(inside, len(ended), LEVEL)) if ended else 1.0,
        altered=sum(not s.genuine for s in scored),
        open=sum(s.genuine and s.loss is None for s in scored),
    )


def storage_scores(storage: Path) -> list[Scored]:
    """Every prediction of every study in a storage folder, scored."""
    return [
        scored
        for folder in sorted(path.parent for path in storage.glob(f"*/{FOLDER}"))
        for scored in scores(folder)
    ]


def frame(scored: Sequence[Scored]) -> pd.DataFrame:
    """One row per prediction: what was said, what came, and whether it held."""
    return pd.DataFrame(
        [
            {
                **asdict(s.prediction),
                "genuine": s.genuine,
                "measured": s.loss,
                "inside": s.inside,
                "error_absolute": s.error,
                "error": s.relative,
            }
            for s in scored
        ]
    )


def described(found: Calibration) -> str:
    """One sentence for people."""
    text = f"{found.inside} of {found.scored} pre-registered predictions lie in their 95 % interval"
    if found.scored:
        text += f", mean error {found.error:.2%} (bias {found.bias:+.2%})"
        if found.chance < 0.05:
            text += f"; intervals that wide should hold more (chance {found.chance:.1%})"
    waiting = f"; {found.open} await their run" if found.open else ""
    altered = f"; {found.altered} were changed after they were written" if found.altered else ""
    return text + waiting + altered


def _rows(group: pd.DataFrame, size: str) -> str:
    """The hash of what was fitted: run, N, D and loss of each, in order of the runs' names."""
    ordered = group.sort_values("run")
    values = [
        [str(run), float(n), float(d), float(loss)]
        for run, n, d, loss in zip(
            ordered["run"], ordered[size], ordered["tokens"], ordered["loss"], strict=True
        )
    ]
    return hashlib.sha256(_canonical(values)).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
