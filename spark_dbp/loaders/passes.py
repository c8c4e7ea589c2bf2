"""A pass through an epoch, and how far it is. Imports `order` and `place`."""

from __future__ import annotations

import logging

from spark_dbp.loaders.order import Deal, Rest
from spark_dbp.loaders.place import Place

log = logging.getLogger("spark_dbp")


class Pass:
    """A pass through an epoch, in one process, and how far it is."""

    def __init__(
        self, epoch: int, deal: Deal, place: Place, batch: int | None = None, inside: int = 0
    ) -> None:
        self.epoch, self.deal, self.place = epoch, deal, place
        self.batch = place.worker if batch is None else batch
        self.inside = inside

        if self.inside >= deal.count_in_batch(place.rank, self.batch):
            self.batch, self.inside = self.batch + place.num_workers * (self.inside > 0), 0

    def find_rest(self) -> Rest:
        is_whole = self.inside >= self.deal.count_in_batch(self.place.rank, self.batch)
        if self.inside and is_whole:
            return self.deal.find_rest(self.batch + 1)
        return self.deal.find_rest(self.batch, self.inside)


def tell_of(begun: Pass, n: int) -> None:
    """Log what the user may not expect of a pass."""
    deal = begun.deal
    if n and deal.rest.position == n and not deal.rest.left:
        log.warning(
            "epoch %d was delivered to its end, so this pass is empty: set_epoch(%d) begins the next",
            begun.epoch,
            begun.epoch + 1,
        )
    if deal.n_padded or deal.n_dropped:
        log.info(
            "epoch %d on %d ranks with batches of %d: %d samples come again, %d are left out",
            begun.epoch,
            deal.world_size,
            deal.batch_size,
            deal.n_padded,
            deal.n_dropped,
        )
