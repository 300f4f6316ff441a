"""Sections of a row (sections.py) that the blocks of a cluster share.

A block that takes all sections of a row one after the other keeps their transforms in the L2, those of as
many rows as there are blocks: of four sections of 32 768 points they do not fit any more, and products with
those of earlier sections come to more bytes than all the rest. Here a row has the blocks of a cluster. Each
transforms its share of the sections; then each has a share of the frequencies, and makes for these all
sections of the result,

    Y_p = sum_q X_q K_(p-q),

with every X_q and every K_d read once, in the place of the X_q; then each takes its share of the sections
back. Whatever their number, a point of a row passes the L2 four times, as with one stage of a Monarch
decomposition more, but by the kernel of a block's own transforms, which takes less time than the columns of
such a stage (cost.py). What grows with their number are products, six instructions each.

Before sm_90 blocks form no clusters: each has a row by itself. That is worth it where the L2 has room for the
transforms of as many rows (sm_89), as every transform is read once for all products.

Barriers of the cluster are between; who is done draws the next row. A launch may have clusters of any size,
also of three, five or seven blocks, if sections are as many: the kernel asks.
"""

from __future__ import annotations

from fftgen.planner import whole
from fftgen.planner.plan import Plan
from fftgen.planner.whole import CLUSTERS, Clusters
from fftgen.targets import Target
from fftgen.targets import target as find_target

MOST = 16  # sections: a thread has one word of each, and of each spectrum, in registers
SIZES = range(1, 9)  # blocks of a cluster, as many as every chip takes
ROOM = 0.7  # of the L2 for what is under way: what is read of more was measured to miss (targets.py)
MOST_HELD = 8  # sections of two signals that a thread has registers for
MANY = 1 << 20  # rows, more than any chip takes at a time
SPILT = 2.0  # times the time, at a guess, where it does not fit


def alone(plan: Plan, rows: int, chip: Target | None = None) -> Clusters:
    """Blocks that are clusters by themselves, where others are refused."""
    return _of(plan, rows, chip or find_target(plan.target), 1)


def clusters(plan: Plan, rows: int, chip: Target | None = None, signals: int = 1) -> Clusters:
    """The clusters that take so many rows of a plan in least time; of those that take as long the smallest.

    ``chip``: the GPU that is there; ``signals``: rows of which a cluster has at a time.
    """
    chip = chip or find_target(plan.target)

    def time(size: int) -> float:
        found = _of(plan, rows, chip, size)
        fits = 4 * signals * plan.points * found.total <= ROOM * chip.l2_bytes
        return _turns(plan, rows, found, chip) * (1.0 if fits else SPILT)

    sizes = [s for s in SIZES if s <= plan.sections] if chip.capability >= CLUSTERS else [1]
    return _of(plan, rows, chip, min(sizes, key=time))


def _of(plan: Plan, rows: int, chip: Target, size: int) -> Clusters:
    """As many as a chip may hold."""
    return Clusters(size, max(1, min(rows, chip.most_clusters(size, plan.body.resident))))


def turns(plan: Plan, rows: int, chip: Target, signals: int = 1) -> int:
    """Sections of a signal that the busiest block takes, one after the other."""
    return _turns(plan, rows, clusters(plan, rows, chip, signals), chip)


def _turns(plan: Plan, rows: int, found: Clusters, chip: Target) -> int:
    return whole.turns(found, rows, plan.body.resident, chip) * -(-plan.sections // found.size)


def stretch(plan: Plan, rows: int, chip: Target, signals: int = 1) -> float:
    """Times longer than so many rows would take if all blocks of the chip had as many sections."""
    return (
        turns(plan, rows, chip, signals) * chip.multiprocessors * plan.body.resident / (rows * plan.sections)
    )


def many(plan: Plan, chip: Target, signals: int = 1) -> Clusters:
    """The clusters for more rows than any chip takes at a time."""
    return clusters(plan, MANY, chip, signals)


def under_way(plan: Plan, chip: Target, signals: int = 1) -> int:
    """Bytes of transforms that are kept at a time, of many rows."""
    return 4 * signals * plan.points * many(plan, chip, signals).total


def packs(plan: Plan) -> int:
    """Words, two numbers each, of a section that a thread has in registers at a time."""
    return max(1, min(4, MOST // (1 << (plan.sections - 1).bit_length())))


def held(plan: Plan) -> bool:
    """Whether a thread has registers for words of all sections of both signals, and of all spectra."""
    return plan.sections <= MOST_HELD


def gradient_packs(plan: Plan) -> int:
    """Words of a section of either signal that a thread has in registers at a time."""
    return max(1, packs(plan) // 2) if held(plan) else packs(plan)


def peaks_words(plan: Plan, found: Clusters) -> int:
    """32-bit words of a call: what clusters draw from, and the powers of a row's sections for each."""
    return 1 + found.total * (1 + plan.sections)
