"""Can a run be asked which documents it had read?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.data import feed
from isoflop.data.prepare import Prepared
from isoflop.data.seen import lines
from isoflop.orchestration.job import Job, execute
from isoflop.run import Run, Text
from isoflop.training.distributed import Ranks

MakeRun = Callable[..., Run]


@pytest.mark.parametrize("step", [0, 7, 20])
def test_counts_are_those_of_the_batches(
    make_run: MakeRun, bytes_text: Prepared, step: int
) -> None:
    run = make_run()
    head, line = lines(run, bytes_text, step)
    assert head == f"before step {step} of 20"
    [seen] = feed.batches(run, bytes_text).documents_seen(step).values()
    assert f" {seen.sum()} of {len(seen)} documents, {step * 128:,} tokens" in line
    assert bool(seen.any()) == (step > 0)


def test_a_passage_is_found_in_what_was_read_and_in_what_was_not(
    make_run: MakeRun, bytes_text: Prepared
) -> None:
    run = make_run()
    batch = feed.batches(run, bytes_text).batch(0).ids[0]
    passage = bytes_text.tokenizer().decode(batch.tolist())
    before, after = (
        [line for line in lines(run, bytes_text, step, passage) if "document" in line][1:]
        for step in (0, 1)
    )
    assert "(not yet)" in before[0] and "(seen)" in after[0]
    assert repr(passage)[1:-1] in after[0]
    assert after[-1].startswith(f"{len(after) - 1} of {bytes_text.train_documents} training")
    *_, none = lines(run, bytes_text, 20, "never written \x00")
    assert none.startswith("0 of ")


def test_a_run_is_asked_by_its_folder(
    make_run: MakeRun,
    make_job: Callable[..., Job],
    text_folder: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = Text(source=str(text_folder), tokenizer="bytes", validation=0.1)
    run = make_run()
    job = make_job(replace(run, data=replace(text, fingerprint=run.data.fingerprint)))
    assert execute(job, Ranks(), lambda records: None)["status"] == "finished"
    for words, code, said in (
        (("--passage", "import"), 0, "training documents hold 'import'"),
        (("--step", "21"), 2, "step is 21; it must be from 0 to 20"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["data", "seen", str(job.folder), "--data", str(cache), *words])
        shown = capsys.readouterr()
        assert ended.value.code == code and said in shown.out + shown.err
