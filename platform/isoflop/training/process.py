"""How does a process get ready to train? It takes its threads, and keeps the memory it has."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

# From glibc's malloc.h: the parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def settle(threads: int) -> None:
    """Use `threads` threads, and hand no freed memory back to the system between steps.

    A training step frees and asks for the same megabytes again; by default glibc returns them each
    time, and the kernel's clearing of fresh pages took a tenth of a small step. Processes are
    reused, so the threads are set anew for each run.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # glibc; other C libraries keep their own habits
            library.mallopt(_MMAP_THRESHOLD, 1 << 30)
            library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
            library.mallopt(_TOP_PAD, 64 << 20)


def keep_to(device: str, share: float) -> None:
    """Take at most so much of a GPU's memory, and none of what an earlier run left; nothing on a
    CPU. Processes are reused, so it is settled anew for each run."""
    if not device.startswith("cuda"):
        return
    gc.collect()
    torch.cuda.empty_cache()
    # A number, or None: "cuda" alone, which means the current one, is refused here.
    torch.cuda.set_per_process_memory_fraction(share, torch.device(device).index)
