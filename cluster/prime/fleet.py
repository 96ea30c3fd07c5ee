"""Which nodes stand, and how is one more bought without ever losing or doubling one?

    wish -> offers that fit -> money left? -> entry in the ledger -> order -> node
                                                                  \\-> no answer: look for its name

A node counts as ours by its name, so whatever was bought is seen, by any machine with the key.
While it is unknown whether an order was carried out, nothing more is bought.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

from cluster import names
from cluster.ledger import Entry, Ledger
from cluster.prime import money
from cluster.prime.api import Client
from cluster.prime.errors import ApiError, Invalid, NoCapacity, NotFound, Unauthorized
from cluster.prime.money import Limits, Spending
from cluster.prime.offers import Wish, choices, explain, order
from cluster.prime.records import BROKEN, ENDED, Offer, Pod

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


class Refused(Exception):
    """Nothing was bought, and why. `category`: one word for `ray status`."""

    def __init__(self, category: str, reason: str) -> None:
        super().__init__(reason)
        self.category = category


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds that things may take."""

    start: float = 1800  # from the order until SSH answers; then the node is given back
    doubt: float = 900  # until an order that nobody answered counts as never carried out
    looks: tuple[float, ...] = (1, 2, 4, 8, 15)  # between looks for such an order's node
    end: float = 120  # until a node that still stands after its end is ended once more


class Fleet:
    """The nodes of one cluster. Safe to share between threads."""

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        cluster: str,
        limits: Limits,
        *,
        several: bool = True,
        ssh_key: Callable[[], str | None] = lambda: None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`several`: nodes must reach each other. `ssh_key`: the id of the key to put on nodes."""
        self.client = client
        self.ledger = ledger
        self.cluster = cluster
        self.limits = limits
        self._several = several
        self._ssh_key = ssh_key
        self._patience = patience or Patience()
        self._clock = clock
        self._sleep = sleep
        self._looking = threading.RLock()

    # Which nodes stand

    def look(self) -> dict[str, Pod]:
        """Every node that stands, by id. Nodes that cannot become useful (stopped, failed, stuck)
        are ended on the way. Raises ApiError rather than give fewer nodes than there are."""
        with self._looking:
            listed = {pod.id: pod for pod in self.client.pods()}
            ours = {i: p for i, p in listed.items() if money.belongs(p.name, self.cluster)}
            ours |= self._missed(ours)
            self._note(ours)
            ended = self._ended()
            once = _first_of_each_name(ours.values())
            return {
                i: pod for i, pod in ours.items() if not self._finish(pod, ended, once[pod.name])
            }

    def standing(self) -> dict[str, Pod]:
        """Every node that may still cost, of use or not; nothing is ended."""
        pods = {pod.id: pod for pod in self.client.pods()}
        pods |= self._missed(pods)
        return {
            i: pod
            for i, pod in pods.items()
            if money.belongs(pod.name, self.cluster) and pod.status not in ENDED
        }

    def _missed(self, ours: Mapping[str, Pod]) -> dict[str, Pod]:
        """Known nodes that the list does not show: each is asked for by its id before it counts as
        gone, since a list that changes while it is read may skip one."""
        found = {}
        for name, entry in self.ledger.read().nodes.items():
            if entry.id is None or (pod := names.pod_of(entry.id)) in ours:
                continue
            try:
                found[pod] = self.client.pod(pod)
            except NotFound:
                with self.ledger.change() as book:
                    book.nodes.pop(name, None)
        return {i: pod for i, pod in found.items() if money.belongs(pod.name, self.cluster)}

    def _note(self, ours: Mapping[str, Pod]) -> None:
        """Ids of nodes whose entry has none yet: an order whose answer was lost is settled."""
        with self.ledger.change() as book:
            for pod in ours.values():
                if (entry := book.nodes.get(pod.name)) and entry.id is None:
                    entry.id, entry.doubt, entry.price = pod.id, False, pod.price
            for name, entry in list(book.nodes.items()):
                age = self._clock() - entry.asked
                entry.doubt = entry.doubt and age <= self._patience.doubt
                if entry.id is None and age > 100 * self._patience.doubt:
                    del book.nodes[name]  # until then its tags wait, should it turn up after all

    def _ended(self) -> dict[str, float]:
        nodes = self.ledger.read().nodes.values()
        return {e.id: e.ended for e in nodes if e.id is not None and e.ended is not None}

    def _finish(self, pod: Pod, ended: Mapping[str, float], first: Pod) -> bool:
        """Whether a node has ended, or is ended here and now because nothing can be done with it.
        One that still stands long after its end is ended again."""
        if pod.status in ENDED:
            self._forget(pod)
            return True
        if pod.id in ended and self._clock() - ended[pod.id] < self._patience.end:
            return True
        why = self._useless(pod)
        if pod.id in ended:
            why = "it was ended and still stands"
        elif pod.id != first.id:
            why = f"one order gave two nodes, the other is {first.id}"
        if not why:
            return False
        logger.warning("ending %s (%s): %s", pod.name, pod.id, why)
        try:
            self.end(pod.id)
        except ApiError as error:
            logger.error("%s could not be ended, and costs: %s", pod.name, error)
        return True

    def _forget(self, pod: Pod) -> None:
        if pod.status == "TERMINATED":
            with self.ledger.change() as book:
                if (entry := book.nodes.get(pod.name)) and entry.id == pod.id:
                    del book.nodes[pod.name]

    def _useless(self, pod: Pod) -> str:
        if pod.status in BROKEN or pod.installation in ("ERROR", "TERMINATED"):
            return f"{pod.status} {pod.installation} {pod.failure}".strip()
        waited = self._clock() - self._asked(pod)
        if not pod.ready and waited > self._patience.start:
            return f"not ready after {waited / 60:.0f} minutes ({pod.status} {pod.installation})"
        if pod.ready and pod.mapped_ports and self._several:
            return "a container behind a port map: other nodes cannot reach it"
        return ""

    def _asked(self, pod: Pod) -> float:
        entry = self.ledger.read().nodes.get(pod.name)
        if entry is not None:
            return entry.asked
        return pod.created.timestamp() if pod.created else self._clock()

    # One more, one less

    def buy(self, wish: Wish, kind: str, node_type: str, tags: Mapping[str, str]) -> Pod:
        """Rent one node. Raises Refused; whatever may have been bought is in the ledger then."""
        with self.ledger.purchase:
            pods = self._undoubted()
            offers = self._offers(wish)
            spent, balance = self._purse(pods)
            tried = []
            for offer in offers:
                where = f"{offer.provider} {offer.region}"
                refusal = money.refusal(self.limits, spent, price=offer.price, balance=balance)
                if refusal:
                    tried.append(f"{where}: {refusal}")
                    break  # the others cost more
                try:
                    return self._order(offer, wish, kind, node_type, tags)
                except Invalid as error:
                    tried.append(f"{where}: {error}")
        raise Refused("Limit" if refusal else "OutOfStock", "; ".join(tried))

    def end(self, identity: str) -> None:
        """Give a node back. It counts as ended from the moment that the API says yes."""
        self.client.delete_pod(identity)
        with self.ledger.change() as book:
            for entry in book.nodes.values():
                if entry.id == identity:
                    entry.ended = self._clock()

    def spending(self, pods: Mapping[str, Pod]) -> Spending:
        """What these nodes and those that ended since the first of them cost."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        bills = list(islice(self.client.history(), 1000)) if pods else []
        return money.spending(self.cluster, pods.values(), bills, now)

    def close(self, why: str) -> None:
        """Buy nothing any more, from this machine."""
        with self.ledger.change() as book:
            book.closed = why

    def _undoubted(self) -> dict[str, Pod]:
        """The nodes that stand, when that is known for sure."""
        if closed := self.ledger.read().closed:
            raise Refused("Closed", closed)
        pods = _asking(self.look)
        doubts = [name for name, entry in self.ledger.read().nodes.items() if entry.doubt]
        if doubts:
            raise Refused("InDoubt", f"not known yet whether {', '.join(doubts)} was bought")
        return pods

    def _offers(self, wish: Wish) -> list[Offer]:
        offers = _asking(
            lambda: self.client.offers(multi_node=wish.machines > 1, gpu_type=wish.gpu)
        )
        fit = choices(offers, wish, several=self._several)
        if not fit:
            raise Refused("NoOffer", explain(offers, wish, several=self._several))
        return fit[:8]

    def _purse(self, pods: Mapping[str, Pod]) -> tuple[Spending, float]:
        """What was spent, and what is left: the head's key need not have the scope to see that, and
        then the API's own refusal is what tells."""
        spent = _asking(lambda: self.spending(pods))
        try:
            return spent, self.client.balance()
        except Unauthorized:
            return spent, float("inf")
        except ApiError as error:
            raise Refused(type(error).__name__, str(error)) from error

    def _order(
        self, offer: Offer, wish: Wish, kind: str, node_type: str, tags: Mapping[str, str]
    ) -> Pod:
        """Order one offer, once. Raises Invalid if it is refused as such."""
        name = str(names.new(self.cluster, kind, node_type))
        key, team = _asking(self._ssh_key), self.client.account.team
        body = order(offer, wish, name=name, team=team, ssh_key=key)
        with self.ledger.change() as book:
            book.nodes[name] = Entry(
                asked=self._clock(), tags=dict(tags), doubt=True, price=offer.price
            )
        try:
            pod = self.client.create_pod(body)
        except ApiError as error:
            if error.uncertain:
                return self._search(name, wish, error)
            with self.ledger.change() as book:
                book.nodes.pop(name, None)
            if isinstance(error, Invalid):
                raise
            raise Refused(type(error).__name__, str(error)) from error
        self._note({pod.id: pod})
        return self._within(pod, wish)

    def _search(self, name: str, wish: Wish, error: ApiError) -> Pod:
        """The node of an order without an answer. It is not ordered again: Refused, if it does not
        turn up, and nothing else is bought until that is settled."""
        for pause in self._patience.looks:
            self._sleep(pause)
            try:
                found = [pod for pod in self.look().values() if pod.name == name]
            except ApiError:
                continue  # the question stays open, and in the ledger
            if found:
                return self._within(found[0], wish)
        raise Refused("InDoubt", f"no answer whether {name} was bought: {error}") from error

    def _within(self, pod: Pod, wish: Wish) -> Pod:
        """A node that turns out dearer than asked for is given back at once."""
        if pod.price <= wish.most + 1e-9:
            return pod
        try:
            self.end(pod.id)
        except ApiError as error:
            raise Refused("TooDear", f"{pod.name} costs {pod.price} $/h; {error}") from error
        raise NoCapacity(f"{pod.price} $/h instead of the price offered")


def _asking(ask: Callable[[], Answer]) -> Answer:
    """A question before anything is bought: its failure is a refusal."""
    try:
        return ask()
    except ApiError as error:
        raise Refused(type(error).__name__, str(error)) from error


def _first_of_each_name(pods: Iterable[Pod]) -> dict[str, Pod]:
    """Names are never given twice, so of two nodes with one name the later is a mistake."""
    order = sorted(pods, key=lambda pod: (pod.created is None, pod.created, pod.id), reverse=True)
    return {pod.name: pod for pod in order}
