"""Making a registry's backends ready: scan, decide, encode, once for all ranks."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from factory.backends.embeds import TextEmbedBackend
from factory.backends.image import ConditioningBackend, SampleBackend
from factory.backends.precompute import fill_captions, fill_pictures
from factory.backends.source import Source
from factory.catalog.catalog import Catalog
from factory.catalog.cuts import PartnerCuts
from factory.catalog.facts import Facts
from factory.catalog.pairing import NO_SOURCE, pair
from factory.errors import EmptyBackendError, FactoryError
from factory.registry import Registry

# Always encoded: what a dropped caption becomes.
EMPTY_CAPTION = ""


def prepare(registry: Registry, *, seed: int) -> dict[str, Source]:
    """Measure what is new, decide, encode what is missing, and publish the facts.

    Run by one process; the others `load` what it published.

    Args:
        registry: The backends.
        seed: Seed of random crops.

    Returns:
        The backends of samples, made ready, by name.

    Raises:
        StorageError: A storage cannot be reached, read or written.
        EmptyBackendError: A backend has no sample left.
        ConfigError: Targets do not divide into the latent cells of their encoder.
        CacheError: The cache is damaged, or an encoder gave unusable rows.
    """
    with registry.telemetry.stage("check storage"):
        registry.check_alignment()
        registry.cache.storage.check(write=True)
    facts = {name: _scan(registry, backend) for name, backend in registry.samples.items()}
    sources = _decide(registry, facts, seed)
    touched = list(sources.values())
    # Repeated, for max_samples may put others in the place of what could not be read.
    while unreadable := _encode_pictures(registry, touched):
        for name, errors in unreadable.items():
            marked = facts[name].with_errors(errors)
            facts[name] = registry.cache.shelf(name).save(marked)
        sources = _decide(registry, facts, seed)
        touched = [source for name in unreadable for source in _with_partners(sources[name])]
    _encode_captions(registry, sources.values())
    _locate(registry, sources)
    return sources


def survey(registry: Registry, *, seed: int) -> tuple[dict[str, Source], dict[str, FactoryError]]:
    """Measure what is new, decide and publish the facts, as `prepare` does; encode nothing.

    Args:
        registry: The backends.
        seed: Seed of random crops.

    Returns:
        The backends of samples by name, and what is wrong with those that are not among them.
    """
    errors: dict[str, FactoryError] = {}
    sources: dict[str, Source] = {}
    for name, backend in registry.samples.items():
        try:
            facts = _scan(registry, backend)
            if not isinstance(backend, ConditioningBackend):
                sources[name] = _source(registry, backend, facts, seed)
            elif backend.source in sources:
                sources[name] = _paired(registry, backend, facts, sources)
        except FactoryError as error:
            errors[name] = error
    return sources, errors


def load(registry: Registry, *, seed: int) -> dict[str, Source]:
    """Open what `prepare` published, without listing or measuring anything.

    Raises:
        EmptyBackendError: Nothing was published for a backend.
    """
    facts = {}
    for name in registry.samples:
        found = registry.cache.shelf(name).load()
        if found is None:
            raise EmptyBackendError(
                f"backend {name!r} has no published catalog in {registry.cache.storage.identity}; "
                "prepare_data() must have run on one rank before setup()"
            )
        facts[name] = found
    sources = _decide(registry, facts, seed)
    _locate(registry, sources)
    return sources


def preload(registry: Registry) -> None:
    """Copy the stores of embeddings to memory, as far as `cache.ram_gb` reaches.

    Run by every process; those of one machine share the copies, and the work.

    Raises:
        StorageError: The storage of the cache cannot be read.
        CacheError: A shard is damaged, or the memory file system is too small.
    """
    for name, backend in {**registry.image_embeds, **registry.text_embeds}.items():
        with registry.telemetry.stage(f"copy {name} to memory") as stage:
            stage.counts["whole"] = "yes" if backend.store.preload() else "as far as there is room"


def _scan(registry: Registry, backend: SampleBackend) -> Facts:
    shelf, journal = registry.cache.shelf(backend.name), registry.cache.journal(backend.name)
    with registry.telemetry.stage(f"scan {backend.name}") as stage:
        try:
            backend.storage.check()
        except FactoryError as error:
            error.add_note(f"while checking the storage of backend {backend.name!r}")
            raise
        known = shelf.load()
        facts = backend.scan(known, registry.engine, journal)
        if known is None or facts.origin != known.origin or not facts.table.equals(known.table):
            facts = shelf.save(facts)
        journal.clear()
        stage.counts.update(samples=len(facts), changes=str(facts.changes))
    return facts


def _decide(registry: Registry, facts: Mapping[str, Facts], seed: int) -> dict[str, Source]:
    with registry.telemetry.stage("decide") as stage:
        backends = registry.samples
        sources = {
            name: _source(registry, backend, facts[name], seed)
            for name, backend in backends.items()
            if not isinstance(backend, ConditioningBackend)
        }
        for backend in backends.values():
            if isinstance(backend, ConditioningBackend):
                sources[backend.name] = _paired(registry, backend, facts[backend.name], sources)
        stage.counts["kept"] = sum(len(source.catalog) for source in sources.values())
    return sources


def _source(registry: Registry, backend: SampleBackend, facts: Facts, seed: int) -> Source:
    images, texts = registry.image_store(backend), registry.text_store(backend)
    return Source(backend, backend.catalog(facts, seed), images, texts)


def _paired(
    registry: Registry,
    backend: ConditioningBackend,
    facts: Facts,
    sources: Mapping[str, Source],
) -> Source:
    """Pair a conditioning backend with its source, which loses what has no partner."""
    source = sources[backend.source]
    catalog = source.catalog
    facts = backend.of_parts(facts)
    partners, of_partner, decided = pair(
        catalog.facts, catalog.decisions, source.backend.prefix,
        facts, backend.prefix, backend.filters,
    )  # fmt: skip
    left = catalog.decisions.without(partners < 0, f"no partner in {backend.name}")
    if not left.kept:
        raise EmptyBackendError(
            f"backend {source.name!r}: no sample has a partner in {backend.name!r} "
            f"({', '.join(f'{n} {why}' for why, n in decided.dropped().items())}); partners "
            "share their path below the prefix, without suffix: compare "
            f"data.backends.{source.name}.prefix={source.backend.prefix!r} with "
            f"data.backends.{backend.name}.prefix={backend.prefix!r}"
        )
    source.catalog = replace(catalog, decisions=left)
    cuts = PartnerCuts(catalog.shapes, of_partner)
    partner = Source(
        backend, Catalog(facts, decided, backend.caption, cuts), registry.image_store(backend)
    )
    source.conditioning[backend.name] = (partner, partners)
    _without_sourceless(source)
    return partner


def _without_sourceless(source: Source) -> None:
    """Drop partners whose sample was dropped later, for want of another backend's partner."""
    code = source.catalog.decisions.reason
    for partner, partners in source.conditioning.values():
        alone = np.zeros(len(partner.catalog.facts), dtype=bool)
        alone[partners[(partners >= 0) & (code != 0)]] = True
        decided = partner.catalog.decisions.without(alone, NO_SOURCE)
        partner.catalog = replace(partner.catalog, decisions=decided)


def _encode_pictures(registry: Registry, sources: Iterable[Source]) -> dict[str, dict[int, str]]:
    """Fill the stores of latents; return what could not be read, by backend and row."""
    unreadable = {}
    for source in sources:
        if source.latents is None:
            continue
        with registry.telemetry.stage(f"encode {source.name}") as stage:
            pictures = source.kept_pictures()
            done, errors = fill_pictures(
                source.latents, source.backend.reader, pictures, registry.engine, source.name
            )
            stage.counts.update(encoded=done, cached=len(pictures) - done - len(errors))
            if errors:
                stage.counts["unreadable"] = len(errors)
                unreadable[source.name] = errors
    for store in registry.image_embeds.values():
        store.encoder.release()
    return unreadable


def _locate(registry: Registry, sources: Mapping[str, Source]) -> None:
    """Look up where encoded rows lie, as far as that is not known on this machine."""
    with registry.telemetry.stage("locate rows"):
        for name, source in sources.items():
            source.locate(registry.cache.kept(name))


def _with_partners(source: Source) -> list[Source]:
    return [source, *(partner for partner, _ in source.conditioning.values())]


def _encode_captions(registry: Registry, sources: Iterable[Source]) -> None:
    wanted: dict[str, tuple[TextEmbedBackend, dict[str, None]]] = {}
    for source in sources:
        is_partner = isinstance(source.backend, ConditioningBackend)
        if source.text is not None and not is_partner:
            empty = dict.fromkeys([EMPTY_CAPTION])
            _, captions = wanted.setdefault(source.text.name, (source.text, empty))
            captions.update(dict.fromkeys(source.catalog.all_texts()))
    for name, (store, captions) in wanted.items():
        with registry.telemetry.stage(f"encode {name}") as stage:
            done = fill_captions(store, captions)
            stage.counts.update(encoded=done, cached=len(captions) - done)
            store.encoder.release()
