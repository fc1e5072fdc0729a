"""Copies rows that lie anywhere in memory one after the other, by a single call.

A loop over rows in Python costs as much again as the copies themselves, and gives up and takes
back the interpreter's lock for each of them. A tensor whose rows begin at every word of the memory
around all of them, and so overlap, needs no loop: choosing rows of it is copying from anywhere.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# What a word may be; the widest that fits is the quickest.
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
# Views of memory begin and end at multiples of this, so that few different ones are made.
_GRAIN = 2**36
# No view begins at address 0, which stands for no array at all.
_FIRST = 4096
# Such views of memory are kept: a batch needs one for each length of row, and a run has a few.
_KEPT = 64
# The elements that torch counts in a view, each as often as rows overlap, must fit into an int64.
_MOST = 2**62


class Rows:
    """Rows of one length that lie anywhere in memory, ready to be copied."""

    def __init__(self, addresses: NDArray[np.int64], stride: int, word: int = max(_WORDS)) -> None:
        """Work out how they are copied; nothing is read.

        Args:
            addresses: Where each of n rows begins, bytes, int64 [n], n above 0, in memory of
                this process that the caller keeps.
            stride: Bytes of a row, above 0.
            word: The longest word that may be copied at once, bytes.
        """
        self._addresses, self._stride = addresses, stride
        self._word = _word(addresses, stride | word)
        base = max(_FIRST, int(addresses.min()) // _GRAIN * _GRAIN)
        reach = -(-(int(addresses.max()) + stride - base) // _GRAIN) * _GRAIN
        self._memory = None
        if reach // self._word * (stride // self._word) <= _MOST:
            self._memory = _everywhere(base, reach, stride, self._word)
            self._starts = torch.from_numpy((addresses - base) // self._word)

    def copy(self, first: int, out: torch.Tensor) -> None:
        """Copy rows from one on, as many as `out` has.

        Args:
            first: The first of them, from 0.
            out: Where they are put, [n, ...], contiguous, on the CPU, and apart from all rows.
        """
        count = out.shape[0]
        if out.data_ptr() % self._word:
            some = self._addresses[first : first + count]
            place = np.array([out.data_ptr()], np.int64)
            Rows(some, self._stride, _word(place, self._word)).copy(0, out)
            return
        matrix = out.view(count, -1).view(_WORDS[self._word])
        if self._memory is None:
            _copy_one_by_one(self._addresses[first : first + count], matrix)
        else:
            _select(self._memory, self._starts[first : first + count], matrix)


def copy_rows(addresses: Sequence[int] | NDArray[np.int64], out: torch.Tensor) -> None:
    """Copy rows to `out`, in the order of their addresses.

    Args:
        addresses: Where each of n rows begins, bytes, in memory of this process that the caller
            keeps; a row is as long as one of `out`, and none of them overlaps it.
        out: Where they are put, [n, ...], contiguous and on the CPU.
    """
    if out.numel():
        places = np.asarray(addresses, np.int64)
        Rows(places, out.nbytes // len(addresses)).copy(0, out)


def _select(rows: torch.Tensor, starts: torch.Tensor, out: torch.Tensor) -> None:
    """Copy rows by this thread alone.

    Several are quicker only while they do nothing but wait for the next copy, which keeps
    processors busy; and where these have other work, each copy waits for the last of its threads,
    ten times as long. Batches are made by several threads anyway.
    """
    threads, limit = torch.get_num_threads(), _thread_limit()
    limit(1)
    try:
        torch.index_select(rows, 0, starts, out=out)
    finally:
        limit(threads)


@cache
def _thread_limit() -> Any:
    """Return what sets among how many threads the calling one divides its work.

    Unlike torch's own setter it leaves other threads alone.
    """
    return getattr(ctypes.PyDLL(None), "omp_set_num_threads", lambda _: None)


def _word(addresses: NDArray[np.int64], lengths: int) -> int:
    """Return the length of the longest word that all begin with and are made of, bytes."""
    bits = int(np.bitwise_or.reduce(addresses)) | lengths
    return bits & -bits  # the lowest bit that is set


@lru_cache(_KEPT)
def _everywhere(base: int, reach: int, stride: int, word: int) -> torch.Tensor:
    """Return the memory from an address on as rows that begin at each of its words.

    Nothing is read, nor need be there, but the rows that are chosen from it.
    """
    words = torch.from_numpy(np.asarray(_Memory(base, reach))).view(_WORDS[word])
    width = stride // word
    return words.as_strided((words.numel() - width + 1, width), (1, 1))


def _copy_one_by_one(addresses: NDArray[np.int64], out: torch.Tensor) -> None:
    for address, row in zip(addresses.tolist(), out, strict=True):
        row.copy_(torch.from_numpy(np.asarray(_Memory(address, row.nbytes))).view(row.dtype))


class _Memory:
    """Memory of this process, as numpy is told of it."""

    def __init__(self, address: int, nbytes: int) -> None:
        """Hold where it begins and how long it is, bytes."""
        self.__array_interface__ = {
            # Said to be writable, which torch wants of an array; nobody writes to it.
            "data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3,
        }  # fmt: skip
