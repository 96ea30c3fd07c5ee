"""What does a trained model write? `isoflop sample`: a checkpoint goes on from prompts.

The options are light; the model is loaded only when they have been read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(text: argparse.ArgumentParser) -> None:
    """The options of `isoflop sample`."""
    text.add_argument("folder", type=Path, help="a checkpoint, or the folder of a run")
    text.add_argument(
        "--prompt", action="append", help="to go on from (default: the empty one); repeatable"
    )
    text.add_argument(
        "--tokens", type=int, metavar="N", help="at most (default: half of the model's context)"
    )
    text.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1)")
    text.add_argument("--top-k", type=int, default=0, metavar="K", help="default: 0, all")
    text.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1, all")
    text.add_argument("--min-p", type=float, default=0.0, metavar="P", help="default: 0, all")
    text.add_argument(
        "--repetition", type=float, default=1.0, metavar="R",
        help="penalty on tokens that were seen before (default: 1, none)",
    )  # fmt: skip
    text.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this is written; repeatable",
    )  # fmt: skip
    text.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    text.set_defaults(act=show)


def show(options: argparse.Namespace) -> int:
    """Print each prompt with what the model writes after it, as it writes, an empty line between
    two."""
    wish = {name: getattr(options, name) for name in
            ("tokens", "temperature", "top_k", "top_p", "min_p", "repetition", "seed")}  # fmt: skip
    writer = Writer(options.folder, stop=tuple(options.stop), **wish)
    for number, prompt in enumerate(options.prompt or [""]):
        print("\n" * bool(number) + prompt, end="", flush=True)
        writer.write([prompt], lambda piece: print(piece, end="", flush=True))
        print()
    return 0


class Writer:
    """A model from a folder, and how it is asked. Raises ValueError for a folder that holds no
    whole checkpoint, and for settings out of bounds."""

    def __init__(
        self,
        folder: Path,
        *,
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition: float = 1.0,
        stop: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"--seed {seed}: it must be at least 0 and below 2**63")
        from isoflop.exchange.checkpoint import load_checkpoint
        from isoflop.rollouts.generate import Ending, Sampling

        self.loaded, self.seed, self.stop = load_checkpoint(folder), seed, stop
        self.tokenizer, config = self.loaded.tokenizer, self.loaded.run.model
        self.sampling = Sampling(
            temperature=temperature,
            new_tokens=max(1, config.context // 2) if tokens is None else tokens,
            stop_ids=(self.tokenizer.end_of_text,),
            repetition=repetition,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
        self.ending = Ending(stop, self._text) if stop else None

    def write(self, prompts: list[str], say: Callable[[str], None] | None = None) -> list[str]:
        """What it writes after each prompt; every prompt has the same seed. `say` is given the
        text of a single prompt piece by piece, as far as it is certain."""
        from isoflop.rollouts.generate import generate
        from isoflop.rollouts.prompts import prompt_ids

        assert say is None or len(prompts) == 1, "pieces of several texts would mix"
        ids = prompt_ids(prompts, self.tokenizer)
        framing = self.loaded.run.objective.framing(self.loaded.run.model.text_vocab)
        told = _Told(self, say) if say else None
        rows = generate(
            self.loaded.model, ids, [[self.seed]] * len(ids), self.sampling, framing,
            ending=self.ending, watch=told.hear if told else None,
        )  # fmt: skip
        texts = [self.cut(self._text(row.completion_ids.tolist())) for row in rows]
        if told:
            told.end(texts[0])
        return texts

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i != self.tokenizer.end_of_text])

    def cut(self, text: str) -> str:
        """Without the string that stopped it, and what is behind."""
        ends = [place for string in self.stop if (place := text.find(string)) >= 0]
        return text[: min(ends)] if ends else text


class _Told:
    """Tells a text in pieces. What may still change is held back: a character whose bytes are not
    all there, and what may be the beginning of a string that stops it."""

    def __init__(self, writer: Writer, say: Callable[[str], None]) -> None:
        self.writer, self.say = writer, say
        self.ids: list[int] = []
        self.told = ""
        self.behind = max((len(string) - 1 for string in writer.stop), default=0)

    def hear(self, prompt: int, sample: int, ids: list[int]) -> None:
        self.ids += ids
        text = self.writer.cut(self.writer._text(self.ids)).rstrip("\ufffd")
        self._tell(text[: len(text) - self.behind])

    def end(self, text: str) -> None:
        """The whole text is known."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        if len(text) > len(self.told) and text.startswith(self.told):
            self.say(text[len(self.told) :])
            self.told = text


def write(folder: Path, prompts: list[str], **settings: Any) -> list[str]:
    """What the model in a folder writes after each prompt; see `Writer`."""
    return Writer(folder, **settings).write(prompts)
