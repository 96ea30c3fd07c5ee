"""What does the command of a study of speed do? Each point takes a few steps, and none is trained.

    main(study)      as `isoflop.study.main`, for a study whose axes are batch, model and precision

Every point is measured alone, in this process; models that a GPU may compile are measured both
ways. In the study's folder under the storage it leaves

    throughput.csv   a row per point and way, skipped ones with the reason
    throughput.png   tokens a second and memory against the rows of a batch
    report.html      both, and from where on a larger batch gains nothing
"""

from __future__ import annotations

import argparse
import base64
import html
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from isoflop.design import Grid, Point, Study, UserError, build, select, user_input

if TYPE_CHECKING:
    import pandas as pd

    from isoflop.orchestration.job import Job
    from isoflop.training.throughput import Speed

Member = TypeVar("Member")
SLOWEST = 2.5  # seconds of a step that is still tried
ALL = 2**31  # rows: a batch is measured whole, or not at all
COLUMNS = {
    "tokens": "tokens", "milliseconds": "ms a step", "tokens_per_second": "tokens/s",
    "flops_per_second": "FLOP/s", "of_product": "of a large product",
    "peak_bytes": "memory", "note": "",
}  # fmt: skip


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Exits with 2 and one sentence on wrong input."""
    options = parser(study).parse_args(arguments)
    try:
        _go(study, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parser(study: Study) -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(
        description=study.question,
        epilog="axes:\n" + "\n".join(study.points.described()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text.add_argument("--only", action="append", default=[], metavar="AXIS=VALUE",
                      help="keep the points with this value; repeat for more")  # fmt: skip
    text.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                      help="change a field of every run: model.width=512")  # fmt: skip
    text.add_argument("--seconds", type=float, default=1.0,
                      help="timed for each point (default: %(default)s)")  # fmt: skip
    text.add_argument("--compile", choices=("auto", "on", "off"), default="auto",
                      help="auto: on a GPU both ways, on a processor as it is")  # fmt: skip
    text.add_argument("--threads", type=int, default=1,
                      help="of a processor; points of a study have one each")  # fmt: skip
    text.add_argument("--storage", type=Path, default=study.file.parent / "results",
                      metavar="DIR", help="of results (default: beside the study)")  # fmt: skip
    return text


def _go(study: Study, options: argparse.Namespace) -> None:
    with user_input():
        if not options.seconds > 0 or options.threads < 1:
            raise ValueError(
                f"--seconds is {options.seconds} and --threads {options.threads}; "
                "they must be above 0"
            )
        chosen = select(study, options.only)
    import torch

    from isoflop.training.process import settle

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settle(options.threads)
    table = measured(study, chosen, options, device, say=print)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{options.threads} core(s)"
    page = write(study, table, options.storage / study.name, name)
    print(f"\nreport  {page}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Points that differ in their rows alone, from the fewest on; or why they are not measured."""

    axes: dict[str, Any]
    jobs: list[Job]
    why: str | None = None

    @property
    def label(self) -> str:
        return label(self.axes)


def measured(
    study: Study,
    chosen: list[Point],
    options: argparse.Namespace,
    device: str,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """One row per point and way; each is told as it is known, and what it comes to."""
    import pandas as pd

    found: list[dict[str, Any]] = []
    for group in _groups(study, chosen, options, device):
        say(f"\n{group.label}" + (f": {group.why}" if group.why else ""))
        rows = [{**group.axes, **asdict(speed)} for speed in _speeds(group, device, options.seconds,
                                                                     say)]  # fmt: skip
        found += rows
        if told := advice(pd.DataFrame(rows)):
            say(f"  {told}")
    return pd.DataFrame(found)


def _groups(
    study: Study, chosen: list[Point], options: argparse.Namespace, device: str
) -> Iterator[Group]:
    from isoflop.campaign import Campaign, Machine
    from isoflop.training.precision import refusal

    with user_input():
        why = [refusal(build(study, point, options.set).precision, device) for point in chosen]
        good = tuple(p for p, no in zip(chosen, why, strict=True) if no is None)
        made = replace(study, points=Grid(good or tuple(chosen)))
        machine = Machine(storage=options.storage)
        jobs = Campaign.prepare(made, machine, good, options.set).chosen if good else []
    several = ways(device, options.compile)
    for axes, members in _alike(study.budget, [(job.axes, job) for job in jobs]):
        for way in several:
            named = {**axes, "compiled": way} if len(several) > 1 else axes
            yield Group(axes=named, jobs=sorted(members, key=lambda job: job.run.rows))
    refused = [(p, no) for p, no in zip(chosen, why, strict=True) if no is not None]
    for axes, reasons in _alike(study.budget, refused):
        yield Group(axes=axes, jobs=[], why=reasons[0])


def _alike(rows: str, members: list[tuple[Point, Member]]) -> list[tuple[Point, list[Member]]]:
    """Together where all axes but the rows agree."""
    found: dict[str, tuple[Point, list[Member]]] = {}
    for axes, member in members:
        same = {name: value for name, value in axes.items() if name != rows}
        found.setdefault(str(same), (same, []))[1].append(member)
    return list(found.values())


def ways(device: str, compile: str) -> list[bool]:
    """Compiled or not, or both."""
    from isoflop.training.compiling import has_compiler

    if compile == "auto":
        return [False, True] if device == "cuda" and has_compiler(gpu=True) else [False]
    return [compile == "on"]


def _speeds(
    group: Group, device: str, seconds: float, say: Callable[[str], None]
) -> Iterator[Speed]:
    """Larger batches than one that took too long, or more memory than there is, are left out."""
    from isoflop.data import feed
    from isoflop.training.means import Means
    from isoflop.training.throughput import Speed, first_step, measure, product_speed

    if group.why:
        yield Speed(rows=0, tokens=0, note=group.why)
    means = Means(compile="on" if group.axes.get("compiled") else "off", micro_batch=ALL)
    rate = 0.0
    for job in group.jobs:
        run = job.run
        flops = float(run.batch_tokens) * run.model.flops_per_token().training
        expected = flops / (rate or product_speed(device, run.precision))
        if expected > SLOWEST:
            note = f"from here on not tried: a step takes {expected:.0f} s or more"
            speed = Speed(rows=run.rows, tokens=run.batch_tokens, note=note)
        else:
            if not rate:
                first_step(run, feed.batches(run, job.prepared), device)
            speed = measure(run, feed.batches(run, job.prepared), device, means, seconds)
        say(f"  {_line(speed)}")
        yield speed
        if not speed.flops_per_second:
            break
        rate = speed.flops_per_second


def advice(group: pd.DataFrame) -> str | None:
    """Of one group of points, in words."""
    from isoflop.training.throughput import Speed, advise

    known = [Speed(**{name: _plain(row[name]) for name in Speed.__dataclass_fields__})
             for _, row in group.iterrows()]  # fmt: skip
    found = advise(known)
    return None if found is None else str(found)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def label(axes: Mapping[str, Any]) -> str:
    """What people call a group."""
    return " ".join(
        value if isinstance(value, str) else f"{name}={value}" for name, value in axes.items()
    )


def _line(speed: Speed) -> str:
    if speed.note:
        return f"{speed.rows:>5} rows  {speed.note}"
    told = ("milliseconds", "tokens_per_second", "of_product", "peak_bytes")
    return f"{speed.rows:>5} rows" + "".join(f"{shown(k, getattr(speed, k)):>16}" for k in told)


def shown(name: str, value: Any) -> str:
    """A number as people read it."""
    value = _plain(value)
    if value is None or value == "" or (name in ("rows", "tokens") and not value):
        return ""
    if name == "peak_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if name == "of_product":
        return f"{value:.0%} of product"
    if name == "milliseconds":
        return f"{value:,.1f} ms"
    if name == "tokens_per_second":
        return f"{value:,.0f} tok/s"
    if name == "flops_per_second":
        return f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def write(study: Study, table: pd.DataFrame, folder: Path, device: str) -> Path:
    """The three files; the page."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "throughput.csv", index=False)
    axes = [name for name in table.columns if name not in (*COLUMNS, "rows")]
    lines, images = list[str](), ""
    groups = {
        label(dict(zip(axes, key, strict=True))): part
        for key, part in table.groupby(axes, sort=False)
    }
    for name, part in groups.items():
        lines.append(f"{name}: {advice(part) or part['note'].iloc[0]}")
    if table["tokens_per_second"].notna().any():
        draw(groups).savefig(folder / "throughput.png", dpi=150)
        data = base64.b64encode((folder / "throughput.png").read_bytes()).decode()
        alt = "tokens a second and memory against rows"
        images = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    page = folder / "report.html"
    page.write_text(_page(study, table, axes, lines, images, device))
    return page


def draw(groups: dict[str, pd.DataFrame]) -> Any:
    """Rate and memory, a line for each group."""
    from isoflop.scaling.plots import COLOURS, MARKERS, panels

    figure, (left, right) = panels(2, width=5.2, height=4.2, title="What a larger batch brings")
    known = {k: v for k, v in groups.items() if v["tokens_per_second"].notna().any()}
    for index, (name, part) in enumerate(known.items()):
        part = part[part["tokens_per_second"].notna()]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        for ax, y in (
            (left, part["tokens_per_second"]),
            (right, part["peak_bytes"].astype(float) / 2**20),
        ):
            ax.plot(part["rows"], y, label=name, color=colour, marker=marker)
    ticks = sorted({int(rows) for part in known.values() for rows in part["rows"] if rows})
    for ax, unit in ((left, "tokens a second"), (right, "memory (MiB)")):
        ax.set(xlabel="rows of a batch", ylabel=unit)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(rows) for rows in ticks])
        ax.set_ylim(bottom=0)
    left.legend(frameon=False)
    return figure


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;
text-align:right}td:last-child{text-align:left}img{max-width:100%}.wide{overflow-x:auto}"""


def _page(
    study: Study, table: pd.DataFrame, axes: list[str], lines: list[str], images: str, device: str
) -> str:
    heads = [*axes, "rows", *COLUMNS.values()]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(shown(name, row[name]))}</td>" for name in [*axes, "rows", *COLUMNS]
        )
        + "</tr>"
        for _, row in table.iterrows()
    )
    said = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{study.name}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(study.question)}</h1>"
        f"<p>Measured on {html.escape(device)}. Utilisation compares with one large product of "
        f"matrices in the same precision. How large a batch is worth its compute is another "
        f"question: <code>Evaluation(noise_scale=True)</code> answers it.</p><ul>{said}</ul>"
        f'{images}<div class="wide"><table><tr>{head}</tr>{rows}</table></div></html>'
    )
