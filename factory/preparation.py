"""Making a registry's backends ready: scan, decide, encode, once for all ranks."""

import logging
from collections.abc import Iterable, Mapping

from factory.backends.conditioning import ConditioningBackend, is_generated
from factory.backends.embeds import TextEmbedBackend
from factory.backends.generated import GeneratedEmbeds
from factory.backends.image import SampleBackend
from factory.backends.precompute import fill_captions, fill_pictures
from factory.backends.source import Source
from factory.catalog.facts import Facts
from factory.errors import EmptyBackendError, FactoryError
from factory.pairing import join, sets_of, unpaired
from factory.registry import Registry

logger = logging.getLogger(__name__)

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
        PairingError: A sample has no partner where each must have one.
    """
    with registry.telemetry.stage("check storage"):
        registry.check_alignment()
        registry.cache.storage.check(write=True)
    facts = {name: _scan(registry, backend) for name, backend in registry.stored.items()}
    sources = _decide(registry, facts, seed)
    touched = list(sources.values())
    # Repeated, for max_samples may put others in the place of what could not be read.
    while unreadable := _encode_pictures(registry, touched):
        for name, errors in unreadable.items():
            marked = facts[name].with_errors(errors)
            facts[name] = registry.cache.shelf(name).save(marked)
        sources = _decide(registry, facts, seed)
        touched = [source for name in unreadable for source in _with_partners(sources[name])]
    for source in sources.values():
        for line in unpaired(source):
            logger.warning(line)
    _encode_captions(registry, sources.values())
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
    facts: dict[str, Facts] = {}
    for name, backend in registry.stored.items():
        try:
            facts[name] = _scan(registry, backend)
            if not isinstance(backend, ConditioningBackend):
                sources[name] = _source(registry, backend, facts[name], seed)
        except FactoryError as error:
            errors[name] = error
    for source in list(sources.values()):
        for sets in sets_of(registry, source):
            ready = [each for each in sets if each.name not in errors]
            try:
                sources |= join(registry, source, ready, facts, seed)
            except FactoryError as error:
                errors[ready[0].name] = error
    return sources, errors


def load(registry: Registry, *, seed: int) -> dict[str, Source]:
    """Open what `prepare` published, without listing or measuring anything.

    Raises:
        EmptyBackendError: Nothing was published for a backend.
    """
    facts = {}
    for name in registry.stored:
        found = registry.cache.shelf(name).load()
        if found is None:
            raise EmptyBackendError(
                f"backend {name!r} has no published catalog in {registry.cache.storage.identity}; "
                "prepare_data() must have run on one rank before setup()"
            )
        facts[name] = found
    return _decide(registry, facts, seed)


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
        sources = {
            name: _source(registry, backend, facts[name], seed)
            for name, backend in registry.stored.items()
            if not isinstance(backend, ConditioningBackend)
        }
        for source in list(sources.values()):
            for sets in sets_of(registry, source):
                sources |= join(registry, source, sets, facts, seed)
        stage.counts["kept"] = sum(len(source.catalog) for source in sources.values())
    return sources


def _source(registry: Registry, backend: SampleBackend, facts: Facts, seed: int) -> Source:
    images, texts = registry.image_store(backend), registry.text_store(backend)
    return Source(backend, backend.catalog(facts, seed), images, texts)


def _encode_pictures(registry: Registry, sources: Iterable[Source]) -> dict[str, dict[int, str]]:
    """Fill the stores of latents; return what could not be read, by owner of the facts and row."""
    unreadable: dict[str, dict[int, str]] = {}
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
                unreadable.setdefault(_owner(source), {}).update(errors)
            if isinstance(source.latents, GeneratedEmbeds):
                source.latents.generator.release()
    for store in registry.image_embeds.values():
        store.encoder.release()
    return unreadable


def _owner(source: Source) -> str:
    """Return whose facts say what can be read: of generated pictures those of their source."""
    backend = source.backend
    if isinstance(backend, ConditioningBackend) and is_generated(backend):
        return backend.source
    return source.name


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
