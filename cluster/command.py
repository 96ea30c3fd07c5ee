"""What does `isoflop cluster ...` do? The verbs, and which module answers each.

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

Verbs = argparse._SubParsersAction  # the type has no public name


def add(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add `cluster` to the commands of isoflop."""
    cluster = verbs.add_parser("cluster", help="rented GPU nodes as one Ray cluster")
    kinds = cluster.add_subparsers(title="what to do", required=True, metavar="WHAT")
    _money(kinds)
    _work(kinds)


def _verb(
    kinds: Verbs[argparse.ArgumentParser],
    name: str,
    text: str,
    act: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text)
    verb.add_argument(
        "--cluster",
        type=Path,
        default=Path("cluster/prime.yaml"),
        metavar="FILE",
        help="the cluster's file (default: %(default)s)",
    )
    verb.set_defaults(act=lambda options: _act(act, options))
    return verb


def _money(kinds: Verbs[argparse.ArgumentParser]) -> None:
    offers = _verb(kinds, "offers", "what is for rent, and what each node type would take", _offers)
    offers.add_argument("--gpu", action="append", help="H100_80GB, CPU_NODE...; repeatable")
    offers.add_argument("--count", type=int, help="GPUs of one node")
    offers.add_argument("--price", type=float, help="dollars per hour at most")
    offers.add_argument("--spot", action="store_true", help="spot offers too")
    _verb(kinds, "status", "nodes, GPUs, $/h, dollars spent, balance", _status)
    _verb(kinds, "bill", "what ended nodes really cost, by cluster", _bill)
    sweep = _verb(kinds, "sweep", "find nodes that a crash left behind, and end them", _sweep)
    sweep.add_argument("--all", action="store_true", help="those of every cluster, not just this")
    sweep.add_argument("--yes", action="store_true", help="do not ask")


def _work(kinds: Verbs[argparse.ArgumentParser]) -> None:
    submit = _verb(kinds, "submit", "run a study there; its log is shown while you stay", _submit)
    submit.add_argument("study", help="studies/scaling_grid.py")
    submit.add_argument("arguments", nargs="*", help="of the study, after --")
    submit.add_argument("--no-check", action="store_true", help="do not try the network first")
    submit.add_argument("--no-wait", action="store_true", help="do not show the log")
    _verb(kinds, "runs", "the studies submitted there, and how they are", _runs)
    logs = _verb(kinds, "logs", "the log of a submitted study, as it grows", _logs)
    logs.add_argument("run", nargs="?", help="default: the latest")
    tunnel = _verb(kinds, "tunnel", "MLflow and Ray's dashboard on this machine", _tunnel)
    tunnel.add_argument("--mlflow", type=int, default=5000, metavar="PORT")
    tunnel.add_argument("--dashboard", type=int, default=8265, metavar="PORT")
    _verb(kinds, "gpus", "nvidia-smi on every node", _gpus)
    fetch = _verb(kinds, "fetch", "copy a folder of the head, or a URL, to this machine", _fetch)
    fetch.add_argument("source", nargs="?", default="isoflop/studies/results/")
    fetch.add_argument("target", nargs="?", default="studies/results/")
    _verb(kinds, "attach", "a shell on the head", _attach)
    check = _verb(kinds, "check", "can all nodes reach each other, and how fast?", _check)
    check.add_argument("--megabytes", type=int, default=64, help="of one all-reduce")


def _act(act: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Refusals of the API are the user's to read: as a sentence, not as a traceback."""
    from cluster.prime.errors import ApiError

    try:
        return act(options)
    except ApiError as error:
        raise ValueError(str(error)) from error


def _offers(options: argparse.Namespace) -> int:
    from cluster.prime.tables import offers

    print(
        offers(options.cluster, options.gpu, options.count, price=options.price, spot=options.spot)
    )
    return 0


def _status(options: argparse.Namespace) -> int:
    from cluster.prime.tables import status

    print(status(options.cluster))
    return 0


def _bill(options: argparse.Namespace) -> int:
    from cluster.prime.tables import bill

    print(bill())
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from cluster.prime.sweep import sweep

    ask = (lambda question: True) if options.yes else _asked
    return sweep(None if options.all else options.cluster, ask, print)


def _asked(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _submit(options: argparse.Namespace) -> int:
    from cluster.jobs import submit

    return submit(
        options.cluster,
        options.study,
        options.arguments,
        check=not options.no_check,
        wait=not options.no_wait,
        say=print,
    )


def _runs(options: argparse.Namespace) -> int:
    from cluster.jobs import runs

    return runs(options.cluster, print)


def _logs(options: argparse.Namespace) -> int:
    from cluster.jobs import follow

    return follow(options.cluster, options.run, print)


def _tunnel(options: argparse.Namespace) -> int:
    from cluster.remote import tunnel

    ports: Sequence[tuple[str, int, int]] = (
        ("MLflow", options.mlflow, 5000),
        ("Ray's dashboard", options.dashboard, 8265),
    )
    return tunnel(options.cluster, ports, print)


def _gpus(options: argparse.Namespace) -> int:
    from cluster.remote import everywhere

    query = "name,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu"
    return everywhere(
        options.cluster, f"nvidia-smi --query-gpu={query} --format=csv,noheader", print
    )


def _fetch(options: argparse.Namespace) -> int:
    from cluster.remote import fetch

    return fetch(options.cluster, options.source, options.target)


def _attach(options: argparse.Namespace) -> int:
    from cluster.remote import attach

    return attach(options.cluster)


def _check(options: argparse.Namespace) -> int:
    from cluster.jobs import check

    return check(options.cluster, options.megabytes, print)
