"""Measuring: fftgen beside its peers on a GPU, and the proofs that need one (design notes 3.3 and 5).

A run is a list of steps (steps.py). A supervisor (supervisor.py) hands them to a worker process
(worker.py), watches the clock, and starts another worker when one is lost, so that a kernel which hangs or
faults costs one step and not the run. A step that measures is a row (row.py): one case (cases.py), all
contenders (contenders.py, peers.py, attention.py), each checked against float64 (reference.py) before the
timer (timer.py) sees it, then timed interleaved (measure.py). Rows go forward, or backward: gradients of all
arguments, through what a contender recorded (backward.py, gradient_reference.py). proof.py and
gradient_proof.py hold kernels to float64 and to the simulator. results.py makes one document of it,
tables.py and plots.py show it.

``--dry-run`` is the same way on the CPU: a host backend (backend.py) with a fake timer.
"""
