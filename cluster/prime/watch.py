"""Who ends the cluster when the laptop is gone? This process, on the head.

    python -m cluster.prime.watch --detach

Every half minute: is a limit reached, or has nothing run for too long? Then the workers are given
back, and the head itself last. It does not need Ray: where Ray does not answer, nothing runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cluster.ledger import Ledger
from cluster.names import folder
from cluster.prime import money
from cluster.prime.errors import ApiError
from cluster.prime.fleet import Fleet

logger = logging.getLogger("cluster.watch")
# Ends with the watch's own end: when nothing costs any more, or where another watch looks already.
KEPT = 'until "$1" -m cluster.prime.watch; do sleep 10; done'
FILE = Path("~/ray_bootstrap_config.yaml")
PROVIDER = "cluster.prime.provider.PrimeNodes"


class Watch:
    """Looks at one cluster, from its head."""

    def __init__(
        self,
        fleet: Fleet,
        busy: Callable[[], bool],
        me: str,
        *,
        farewell: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`busy`: whether anything runs. `me`: the head's id. `farewell` is called before nodes are
        ended, to put away what is worth keeping."""
        self._fleet = fleet
        self._busy = busy
        self._me = me
        self._farewell = farewell
        self._clock = clock
        self._sleep = sleep
        self._active = clock()
        self._was: bool | None = None

    def look(self) -> str:
        """Why the cluster must end now; empty if it need not. An API that does not answer is no
        reason, and stops no other one: idle time goes on."""
        busy = self._busy()
        if busy:
            self._active = self._clock()
        if busy != self._was:
            limit = self._fleet.limits.idle_minutes
            quiet = f"nothing runs: the cluster ends in {limit:g} minutes, unless something does"
            logger.info("%s", "something runs" if busy else quiet)
        self._was = busy
        idle = (self._clock() - self._active) / 60
        if idle >= self._fleet.limits.idle_minutes:
            return f"nothing has run for {idle:.0f} minutes"
        try:
            spent = self._fleet.spending(self._fleet.look())
        except ApiError as error:
            logger.warning("the API does not answer: %s", error)
            return ""
        return money.exceeded(self._fleet.limits, spent)

    def end(self, why: str) -> None:
        """Give every node back, this one last; repeated until the API says that all are gone."""
        logger.warning("the cluster ends: %s", why)
        self._fleet.close(f"the cluster has ended: {why}")
        try:
            self._farewell()
        except Exception:
            logger.exception("not everything could be put away")
        pause = 5.0
        while not self._ended():
            self._sleep(pause)
            pause = min(60.0, 2 * pause)

    def _ended(self) -> bool:
        """One try; the head only goes when nothing else stands, since nobody would come back."""
        try:
            others = [i for i in self._fleet.standing() if i != self._me]
            for other in others:
                self._fleet.end(other)
            if others:
                return False
            self._fleet.end(self._me)
        except ApiError as error:
            logger.error("nodes still cost: %s", error)
            return False
        return True

    def run(self, every: float = 30) -> None:
        """Look every so many seconds, and end the cluster when it is time. Nothing that goes wrong
        may end the watch instead."""
        while True:
            try:
                if why := self.look():
                    return self.end(why)
            except Exception:
                logger.exception("the watch goes on")
            self._sleep(every)


def ray_is_busy() -> bool:
    """Whether Ray has a job, uses a resource or wants one. An answer that does not come is no."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.job_submission import JobSubmissionClient

    try:
        jobs = JobSubmissionClient("http://127.0.0.1:8265").list_jobs()
        status = get_cluster_status(f"{os.environ['ISOFLOP_NODE_ADDRESS']}:6379")
    except Exception as error:  # whatever Ray raises when it is ill
        logger.warning("Ray does not answer: %s", error)
        return False
    wanted = status.resource_demands
    return (
        any(not job.status.is_terminal() for job in jobs)
        or any(r.used for r in status.cluster_resource_usage if r.resource_name in ("CPU", "GPU"))
        or bool(wanted.ray_task_actor_demand or wanted.placement_group_demand)
    )


def _put_away() -> None:
    """A last copy of MLflow's database beside its artifacts."""
    script = Path(__file__).parents[1] / "mlflow.sh"
    subprocess.run(["bash", str(script), "backup"], check=True, timeout=180)


def watch(config: dict[str, Any], me: str) -> Watch:
    """The watch over the cluster of a bootstrapped file."""
    from cluster.prime.provider import fleet

    cluster = config["cluster_name"]
    found = fleet(config["provider"], cluster, Ledger(folder(cluster) / "ledger.json"))
    return Watch(found, ray_is_busy, me, farewell=_put_away)


def detach(cluster: str) -> None:
    """Start a watch that outlives the session of whoever starts it, and its own death: a shell
    starts it again until it has ended the cluster."""
    log = folder(cluster) / "watch.log"
    with log.open("a") as out:
        subprocess.Popen(
            ["sh", "-c", KEPT, "isoflop-watch", sys.executable],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ends the cluster at its limits; see the README.")
    parser.add_argument("--detach", action="store_true", help="run in the background")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = json.loads(FILE.expanduser().read_text())
    if config["provider"].get("module") != PROVIDER:
        return  # nothing is rented here
    if options.detach:
        return detach(config["cluster_name"])
    try:
        with FileLock(folder(config["cluster_name"]) / "watch.lock", timeout=0):
            watch(config, os.environ["RAY_CLOUD_INSTANCE_ID"]).run()
    except Timeout:
        logger.info("a watch runs already")


if __name__ == "__main__":
    main()
