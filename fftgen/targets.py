"""One frozen row per GPU architecture: limits that make a plan legal and rates that make it fast.

Limits: CUDA Programming Guide, appendix "Compute Capabilities", tables "Technical Specifications
per Compute Capability". Rates are those of the chip named in the row and serve the cost model only:
device-memory bandwidth, bandwidth between L2 and multiprocessors, dense 16-bit matrix rate with fp32
accumulation, boost clock. Multiprocessors and L2 size are those of the chip's datasheet or of the
whitepaper of its architecture. SOURCES says where each rate is from; what no public document states is
called assumed, and ``--roofline`` says so where it decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fftgen.errors import InputError

KIB = 1024
L1_LEAST = 28 * KIB  # of the L1 cache, whatever blocks take


@dataclass(frozen=True)
class Target:
    """An architecture as the planner sees it.

    ``shared_block`` is the most dynamic shared memory one block may ask for (bytes, opt-in),
    ``shared_sm`` what a multiprocessor has, of which every resident block takes ``shared_reserved``
    more. ``gpc``: multiprocessors of a whole GPC, among which the blocks of a cluster are (0: none are
    formed). ``virtual`` is set on the row that is shipped as PTX instead of machine code.
    """

    name: str
    major: int
    minor: int
    shared_block: int
    shared_sm: int
    shared_reserved: int
    warps_sm: int
    blocks_sm: int
    registers_sm: int
    chip: str
    multiprocessors: int
    l2_bytes: int
    bandwidth: float  # bytes per second
    l2_bandwidth: float  # bytes per second
    tensor_rate: float  # floating-point operations per second
    clock: float  # hertz
    sources: tuple[str, str, str, str]  # of the four rates above
    gpc: int = 0
    virtual: bool = False

    def resident_blocks(self, warps: int, shared_bytes: int, registers: int = 0) -> int:
        """Blocks of so many warps that a multiprocessor holds: by shared memory, slots and registers.

        ``shared_bytes``: of a block; ``registers``: of a thread, given out in eights (0: no matter). Source:
        CUDA Programming Guide, "Technical Specifications per Compute Capability". 0: not even one.
        """
        by_shared = self.shared_sm // max(1, shared_bytes + self.shared_reserved)
        by_registers = self.registers_sm // (32 * warps * 8 * max(1, -(-registers // 8)))
        return min(by_shared, by_registers, self.warps_sm // warps, self.blocks_sm)

    def l1_beside(self, blocks: int, shared_bytes: int) -> int:
        """Bytes of the L1 cache beside so many blocks of ``shared_bytes`` each.

        Both are parts of one memory, 28 KiB larger than the most shared memory (256, 192 or 128 KiB; 32
        KiB larger on sm_75). Source: CUDA tuning guides of the architectures, "Unified Shared Memory/L1".
        """
        return L1_LEAST + self.shared_sm - blocks * (shared_bytes + self.shared_reserved)

    def clusters(self, size: int, resident: int) -> int:
        """Clusters of so many blocks, of ``resident`` to a multiprocessor, that run at a time for sure.

        The blocks of one are in one GPC (CUDA Programming Guide, "Thread Block Clusters"), and what a GPC has
        over is idle: as far as is known of GPCs.
        """
        return min(self._clusters(size, resident))

    def most_clusters(self, size: int, resident: int) -> int:
        """The same that may run at a time: for launches, where one too many waits, and then finds nothing to
        do, and one too few is missed."""
        return max(self._clusters(size, resident))

    def _clusters(self, size: int, resident: int) -> list[int]:
        if size == 1:
            return [self.multiprocessors * resident]
        return [sum(own * resident // size for own in gpcs) for gpcs in self.gpcs]

    @property
    def gpcs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Multiprocessors of each GPC, which no driver tells: in pairs (TPC) as evenly as they go; and one
        that lacks a pair, which another has. Such an H100 ran clusters of eight on 120 of its 132 at a time,
        where even ones have room for 128 (github.com/accel-sim/gpu-app-collection, pull request 87).
        """
        count = -(-self.multiprocessors // self.gpc) if self.gpc else 0
        if not count:
            return (), ()
        pairs, single = divmod(self.multiprocessors, 2)
        share, more = divmod(pairs, count)
        even = [2 * (share + (i < more)) for i in range(count)]
        even[-1] += single
        other = list(even)
        if more + 1 < count and 2 * share < self.gpc:
            other[more] += 2
            other[-1] -= 2
        return tuple(even), tuple(other)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Resources whose rate nobody stated or measured."""
        rates = (("device memory",), ("L2",), ("tensor cores",), ("shared memory", "issue slots"))
        found = (r for r, s in zip(rates, self.sources, strict=True) if s.startswith("assumed"))
        return tuple(name for names in found for name in names)

    @property
    def capability(self) -> int:
        return 10 * self.major + self.minor

    def on(self, multiprocessors: int, l2_bytes: int) -> Target:
        """The same on a GPU of so many multiprocessors and so large an L2: chips of an architecture differ in
        them, and so do shares of one (MIG)."""
        return replace(self, multiprocessors=multiprocessors, l2_bytes=l2_bytes)


# Of each chip: device memory, L2, matrix rate, clock.
# Reads of the L2 alone were measured at 5.4 (A100), 9.7 (H200) and 5.2 TB/s (L40), of up to 0.7 of what it
# holds on the first two: github.com/te42kyfo/gpu-benches, gpu-l2-cache. Half of what kernels here move there
# is written.
_READS = "reads alone were measured faster"
_A100 = (
    "A100 80GB datasheet",
    f"assumed: 70 % of the 5120 bytes a cycle of the A100 whitepaper; {_READS}",
    "A100 datasheet",
    "A100 whitepaper, boost",
)
SOURCES = {
    "T4": (
        "T4 datasheet",
        "measured: Jia et al. 2019, arXiv 1903.07486, L2 load throughput",
        "T4 datasheet",
        "T4 product brief, boost",
    ),
    "A100-SXM 80GB": _A100,
    "any from sm_80": _A100,
    "A40": ("A40 datasheet", "assumed", "A40 datasheet", "A40 product brief, boost"),
    "L40S": ("L40S datasheet", f"assumed; {_READS} (L40)", "L40S datasheet", "L40S product brief, boost"),
    "H200-SXM": (
        "measured: device-to-device copy on an H200 (design note 2.1); the datasheet has 4.8 TB/s",
        f"assumed; {_READS}",
        "assumed: 80 % of the 989 TFLOP/s of the datasheet, which matrices of random numbers do not reach",
        "H100 SXM, boost; the datasheet has none",
    ),
    "B200": (
        "HGX B200 datasheet",
        "assumed",
        "HGX B200 datasheet: half of the rate with sparsity",
        "assumed",
    ),
    "RTX PRO 6000": (
        "RTX PRO 6000 Blackwell datasheet",
        "assumed",
        "RTX PRO 6000 Blackwell datasheet: an eighth of its fp4 rate with sparsity",
        "assumed",
    ),
}


def _row(
    name: str,
    shared: tuple[int, int, int],
    resident: tuple[int, int],
    chip: str,
    sms: int,
    l2_mib: int,
    rates: tuple[float, float, float, float],
    gpc: int = 0,
) -> Target:
    digits = name.split("_")[1]
    block, sm, reserved = (k * KIB for k in shared)
    return Target(
        name=name,
        major=int(digits[:-1]),
        minor=int(digits[-1]),
        shared_block=block,
        shared_sm=sm,
        shared_reserved=reserved,
        warps_sm=resident[0],
        blocks_sm=resident[1],
        registers_sm=65536,
        chip=chip,
        multiprocessors=sms,
        l2_bytes=l2_mib * KIB * KIB,
        bandwidth=rates[0] * 1e9,
        l2_bandwidth=rates[1] * 1e9,
        tensor_rate=rates[2] * 1e12,
        clock=rates[3] * 1e9,
        sources=SOURCES[chip],
        gpc=gpc,
        virtual=name.startswith("compute_"),
    )


# name, (shared KiB per block, per multiprocessor, reserved), (warps, blocks resident), chip,
# multiprocessors, L2 MiB, (device GB/s, L2 GB/s, matrix TFLOP/s, clock GHz), multiprocessors of a whole GPC
# (whitepapers of GH100 and GB202; of B200 an eighth of the 160 of both dies, assumed)
TARGETS = {
    t.name: t
    for t in (
        _row("sm_75", (64, 64, 0), (32, 16), "T4", 40, 4, (320, 1270, 65, 1.59)),
        _row("sm_80", (163, 164, 1), (64, 32), "A100-SXM 80GB", 108, 40, (2039, 5000, 312, 1.41)),
        _row("sm_86", (99, 100, 1), (48, 16), "A40", 84, 6, (696, 2500, 150, 1.74)),
        _row("sm_89", (99, 100, 1), (48, 24), "L40S", 142, 96, (864, 4500, 362, 2.52)),
        _row("sm_90", (227, 228, 1), (64, 32), "H200-SXM", 132, 60, (4300, 7500, 790, 1.98), 18),
        _row("sm_100", (227, 228, 1), (64, 32), "B200", 148, 126, (7700, 12000, 2250, 1.96), 20),
        _row("sm_120", (99, 100, 1), (48, 24), "RTX PRO 6000", 188, 128, (1792, 7000, 500, 2.60), 16),
        # The last resort for chips newer than this table: the smallest limits from sm_80 upward.
        _row("compute_80", (99, 100, 1), (48, 16), "any from sm_80", 108, 40, (2039, 5000, 312, 1.41)),
    )
}
REAL_TARGETS = tuple(t for t in TARGETS.values() if not t.virtual)
# Integrated chips run no machine code but their own (CUDA C++ Programming Guide, "Binary Compatibility").
INTEGRATED = frozenset({(5, 3), (6, 2), (7, 2), (8, 7)})


def target(name: str | Target) -> Target:
    """The row for ``"sm_90"``, ``"90"`` or ``"9.0"``. Raises InputError for an unknown architecture."""
    if isinstance(name, Target):
        return name
    key = str(name).replace(".", "")
    key = f"sm_{key}" if key.isdigit() else key
    if key not in TARGETS:
        raise InputError(f"target {name!r} is not supported: choose from {', '.join(TARGETS)}")
    return TARGETS[key]


def target_for(capability: tuple[int, int]) -> Target:
    """The row whose plans suit a device of this compute capability.

    The exact row, else the nearest lower minor of the same major, else the virtual row (PTX), as for
    integrated chips whose machine code is theirs alone.
    Raises InputError below sm_75, where no matrix instruction of the kernels exists.
    """
    major, minor = capability
    same = [t for t in REAL_TARGETS if t.major == major and t.minor <= minor]
    if same and capability not in INTEGRATED:
        return max(same, key=lambda t: t.minor)
    if (major, minor) < (7, 5):
        raise InputError(
            f"compute capability {major}.{minor} is too old: fftgen needs tensor cores of sm_75 or later; "
            "call with CPU tensors for the torch.fft path"
        )
    return TARGETS["compute_80"]
