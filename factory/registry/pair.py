"""Pairing of conditioning backends with the samples of their source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.backends.conditioning import RANDOM, ConditioningBackend, sampling_of
from factory.backends.embeddings import ImageEmbedBackend
from factory.backends.generated import generated_embeds
from factory.backends.prepared import PreparedBackend
from factory.catalog.catalog import Catalog
from factory.catalog.crops import Crops, OwnCrops, PartnerCrops
from factory.catalog.facts import Facts
from factory.catalog.pairing import NO_SOURCE, pair
from factory.conditioning.generator import BatchGenerator
from factory.errors import ConfigError, EmptyBackendError, PairingError
from factory.registry.registry import Registry

# Conditioning backends made ready and their row for each row of the source, by name.
PairedBackends: TypeAlias = Mapping[str, tuple[PreparedBackend, NDArray[np.int64]]]

# Keys shown where partners are missing.
SHOWN = 3


def sets_of(registry: Registry, source: PreparedBackend) -> list[list[ConditioningBackend]]:
    """Return the conditioning backends of a source, those together that are joined at once.

    Where a sample has one of several sets, all must be known before any sample is dropped.
    """
    found = [
        backend
        for backend in registry.samples.values()
        if isinstance(backend, ConditioningBackend) and backend.source == source.name
    ]
    if sampling_of(source.backend) == RANDOM:
        return [found] if found else []
    return [[backend] for backend in found]


def join(
    registry: Registry,
    source: PreparedBackend,
    sets: Sequence[ConditioningBackend],
    facts: Mapping[str, Facts],
    seed: int,
) -> dict[str, PreparedBackend]:
    """Pair a source with some of its conditioning backends; it loses what has no partner.

    Args:
        registry: The backends.
        source: The source; it is changed in place.
        sets: The conditioning backends, joined at once.
        facts: Facts of backends by name; those of generated ones are the source's.
        seed: Seed of what generators draw, and of loose references' random crops.

    Returns:
        The conditioning backends made ready, by name.

    Raises:
        EmptyBackendError: No sample has a partner.
        PairingError: A sample has none where each must have one.
        ConfigError: Missing partners are to be kept, and their shape cannot be known.
    """
    made = {each.name: _paired(registry, each, source, facts, seed) for each in sets}
    if made:
        _drop_lonely(source, sets[0], made)
        source.conditioning.update(made)
        _drop_sourceless(source)
    return {name: partner for name, (partner, _) in made.items()}


def _paired(
    registry: Registry,
    backend: ConditioningBackend,
    source: PreparedBackend,
    facts: Mapping[str, Facts],
    seed: int,
) -> tuple[PreparedBackend, NDArray[np.int64]]:
    """Return a conditioning backend made ready, and its row for each row of the source."""
    store = registry.image_store(source.backend)
    cell = store.encoder.downscale if backend.deliver == "cells" and store is not None else 1
    bonded = backend.bonded(source.backend, seed, cell)
    catalog = source.catalog
    if backend.generate is not None:
        same = Catalog(catalog.facts, catalog.decisions, catalog.captions, catalog.shapes)
        partners = np.arange(len(catalog.facts), dtype=np.int64)
    else:
        theirs = bonded.of_parts(facts[backend.name])
        own = None if backend.strict else bonded.decide(theirs, seed)
        partners, of_partner, decided = pair(
            catalog.facts, catalog.decisions, source.backend.prefix,
            theirs, backend.prefix, backend.filters, own,
        )  # fmt: skip
        crops: Crops = PartnerCrops(catalog.shapes, of_partner)
        if not backend.strict:
            crops = OwnCrops(theirs, bonded.geometry, seed)
        same = Catalog(theirs, decided, backend.caption, crops)
    made = PreparedBackend(
        bonded,
        same,
        _store(registry, bonded, source),
        vision=registry.vision_store(backend),
        encode_mode=registry.encode_mode(backend),
        redraws=backend.strict and source.redraws,
    )
    return made, partners


def _store(
    registry: Registry, backend: ConditioningBackend, source: PreparedBackend
) -> ImageEmbedBackend | None:
    """Return where a conditioning backend's rows are kept; None where pixels are read."""
    generate = backend.generate
    of_model = isinstance(generate, BatchGenerator)
    found = registry.image_store(backend)
    stored = backend.stored
    if stored is None:
        stored = generate is not None and source.latents is not None
    if found is None and (stored or of_model):
        found = registry.pixel_store(backend)
    if found is not None and isinstance(generate, BatchGenerator):
        seed = 0 if backend.bond is None else backend.bond.seed
        return generated_embeds(found, generate, seed)
    return found


def _drop_lonely(
    source: PreparedBackend, backend: ConditioningBackend, made: PairedBackends
) -> None:
    """Drop the samples that have a partner in none of some sets, of which one is given."""
    names = ", ".join(made)
    lonely = ~np.any([partners >= 0 for _, partners in made.values()], axis=0)
    decisions = source.catalog.decisions
    missing = np.flatnonzero(lonely & (decisions.reason == 0))
    if not missing.size:
        return
    partner, _ = made[backend.name]
    if missing.size == decisions.kept:
        raise EmptyBackendError(_no_partner(source, partner, names))
    if backend.missing_partner == "error":
        raise PairingError(
            f"backend {source.name!r}: {missing.size} of {decisions.kept} samples have no "
            f"partner in {names} ({_examples(source, missing)}); add what is missing, or set "
            f"data.backends.{backend.name}.missing_partner=drop to train without them"
        )
    if backend.missing_partner == "keep":
        _check_keep(source, partner)
        return
    left = decisions.without(lonely, f"no partner in {names}")
    source.catalog = replace(source.catalog, decisions=left)


def _no_partner(source: PreparedBackend, partner: PreparedBackend, names: str) -> str:
    dropped = partner.catalog.decisions.dropped()
    return (
        f"backend {source.name!r}: no sample has a partner in {names!r} "
        f"({', '.join(f'{n} {why}' for why, n in dropped.items())}); partners "
        "share their path below the prefix, without suffix: compare "
        f"data.backends.{source.name}.prefix={source.backend.prefix!r} with "
        f"data.backends.{partner.name}.prefix={partner.backend.prefix!r}"
    )


def _check_keep(source: PreparedBackend, partner: PreparedBackend) -> None:
    """Refuse zeros of an unknown shape: latents are known where both have one encoder."""
    backend = partner.backend
    zeros = isinstance(backend, ConditioningBackend) and backend.strict and partner.gives_latents
    if zeros and partner.latents is not source.latents:
        where = f"data.backends.{partner.name}"
        raise ConfigError(
            f"{where}.missing_partner=keep: zeros stand for missing latents, and their shape is "
            f"known where both have the same image_embeds; set it as in {source.name!r}, or "
            f"{where}.deliver=pixels"
        )


def _drop_sourceless(source: PreparedBackend) -> None:
    """Drop partners whose sample was dropped, here or for want of another set's partner."""
    code = source.catalog.decisions.reason
    for partner, partners in source.conditioning.values():
        alone = np.zeros(len(partner.catalog.facts), dtype=bool)
        alone[partners[(partners >= 0) & (code != 0)]] = True
        decided = partner.catalog.decisions.without(alone, NO_SOURCE)
        partner.catalog = replace(partner.catalog, decisions=decided)


def unpaired(source: PreparedBackend) -> Iterator[str]:
    """Yield a sentence for each set that lacks partners of a source's samples, or has spare ones.

    Samples that are dropped count where it is for want of a partner.
    """
    made = source.catalog.decisions
    wanted = np.array([why == "kept" or why.startswith("no partner in") for why in made.reasons])
    for name, (partner, partners) in source.conditioning.items():
        missing = np.flatnonzero(wanted[made.reason] & (partners < 0))
        if missing.size:
            yield (
                f"{missing.size} of {len(partners)} samples of {source.name!r} have no partner "
                f"in {name!r} ({_examples(source, missing)})"
            )
        theirs = partner.catalog.decisions
        if NO_SOURCE in theirs.reasons:
            code = theirs.reasons.index(NO_SOURCE)
            taken = np.zeros(len(theirs.reason), dtype=bool)
            taken[partners[partners >= 0]] = True
            spare = np.flatnonzero((theirs.reason == code) & ~taken)
            if spare.size:
                yield (
                    f"{spare.size} of {len(theirs.reason)} pictures of {name!r} belong to no "
                    f"sample of {source.name!r} ({_examples(partner, spare)})"
                )


def _examples(source: PreparedBackend, rows: NDArray[np.int64]) -> str:
    shown = ", ".join(source.catalog.facts.texts("key", rows[:SHOWN]))
    return f"{shown}, ..." if rows.size > SHOWN else shown
