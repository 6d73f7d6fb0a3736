"""Slow reference implementations of the similarities, close to their definitions: float64 NumPy, neuron by neuron."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

_CONF = Path(__file__).parents[1] / "conf" / "similarity"

NAMES = sorted(path.stem for path in _CONF.glob("*.yaml"))
"""Every similarity that a config can choose."""


def configured(name: str):
    """A similarity as its file in conf/similarity builds it."""
    return instantiate(OmegaConf.create({"seed": 0, "similarity": OmegaConf.load(_CONF / f"{name}.yaml")}).similarity)


def assert_close(found, expected, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """``numpy.testing.assert_allclose`` of tensors; torch's own imports its compiler on the first call."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=rtol, atol=atol)


def ticket(image: int) -> int:
    """MurmurHash3's final mix in plain integers: the lower ticket ranks first if activations tie."""
    mixed = image ^ (image >> 16)
    mixed = mixed * 0x85EBCA6B % 2**32
    mixed ^= mixed >> 13
    mixed = mixed * 0xC2B2AE35 % 2**32
    return mixed ^ (mixed >> 16)


def by_ticket(rows) -> np.ndarray:
    """Row numbers, which are also the ids, in the order of their tickets."""
    return np.array(sorted((int(row) for row in rows), key=ticket), dtype=np.int64)


def top(column: np.ndarray, k: int) -> np.ndarray:
    """The k largest; among ties, the lower ticket comes first."""
    order = by_ticket(range(len(column)))
    return order[np.argsort(-column[order], kind="stable")[:k]]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def likelihood(P, A, top_k, a, min_prob, p_start=None, p_end=None) -> np.ndarray:
    Q = softmax(a * P.astype(np.float64))
    k = min(top_k, len(P))
    rows = []
    for m in range(A.shape[1]):
        q = Q[top(A[:, m], k)]
        if p_start is None:
            rows.append(np.log(q + min_prob).sum(0))
            continue
        p = np.array([p_start - i / k * (p_start - p_end) for i in range(k)])[:, None]
        rows.append(np.log(1 + p * (q - 1) + min_prob).sum(0))
    return np.array(rows)


def relative(L: np.ndarray, lam: float) -> np.ndarray:
    return L - lam * (np.logaddexp.reduce(L, axis=0) - np.log(len(L)))


def soft_wpmi(P, A, top_k=100, a=10.0, lam=1.0, min_prob=1e-7, p_start=0.998, p_end=0.97) -> np.ndarray:
    return relative(likelihood(P, A, top_k, a, min_prob, p_start, p_end), lam)


def wpmi(P, A, top_k=28, a=2.0, lam=0.6, min_prob=1e-7) -> np.ndarray:
    return relative(likelihood(P, A, top_k, a, min_prob), lam)


def cosine(P, A, centre=False, power=1, min_norm=0.0) -> np.ndarray:
    S = np.zeros((A.shape[1], P.shape[1]))
    for m in range(A.shape[1]):
        for c in range(P.shape[1]):
            x, y = A[:, m].astype(np.float64), P[:, c].astype(np.float64)
            if centre:
                x, y = x - x.mean(), y - y.mean()
            x, y = x**power, y**power
            S[m, c] = x @ y / (max(np.linalg.norm(x), min_norm) * max(np.linalg.norm(y), min_norm))
    return S


def rank_reorder(P, A, orders, p=3.0, top_fraction=0.05, scale_p=0.5) -> np.ndarray:
    """``orders``: the random orders of the baseline, over the ranks ascending."""
    n = max(1, int(len(P) * top_fraction))
    S = np.zeros((A.shape[1], P.shape[1]))
    for m in range(A.shape[1]):
        rows = by_ticket(top(A[:, m], n))
        t = A[rows, m].astype(np.float64)
        ascending = np.sort(t)
        baseline = np.mean([np.mean(np.abs(ascending[order] - ascending) ** p) for order in orders])
        for c in range(P.shape[1]):
            ranks = np.argsort(np.argsort(P[rows, c], kind="stable"))
            S[m, c] = -np.mean(np.abs(t - ascending[ranks]) ** p) / baseline / P[rows, c].mean() ** scale_p
    return S
