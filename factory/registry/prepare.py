"""Preparation of a registry's backends, once for all ranks: scan, decide, encode."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from factory.backends.conditioning import ConditioningBackend, is_generated
from factory.backends.embeddings import PictureEmbedBackend
from factory.backends.encode_mode import EncodeMode
from factory.backends.image import SampleBackend
from factory.backends.prepared import PreparedBackend
from factory.catalog.facts import Facts
from factory.errors import EmptyBackendError, FactoryError
from factory.registry.pair import join, sets_of, unpaired
from factory.registry.precompute import fill_captions, fill_pictures
from factory.registry.registry import Registry
from factory.registry.scan import scan_all, scanned

logger = logging.getLogger("factory")


def prepare(
    registry: Registry,
    *,
    seed: int,
    check: Callable[[Mapping[str, PreparedBackend]], None] | None = None,
) -> dict[str, PreparedBackend]:
    """Measure what is new, decide, encode what is missing, and publish the facts.

    Run by one process; the others `load` what it published.

    Args:
        registry: The backends.
        seed: Seed of random crops.
        check: Looks at the backends of samples before anything is encoded; may raise.

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
    facts = scanned(registry)
    sources = _decide(registry, facts, seed)
    if check is not None:
        check(sources)
    touched = list(sources.values())
    # Repeated, for max_samples may put others in the place of what could not be read.
    while unreadable := _encode_pictures(registry, touched):
        for name, errors in unreadable.items():
            marked = facts[name].with_errors(errors)
            facts[name] = registry.cache.facts_store(name).save(marked)
        sources = _decide(registry, facts, seed)
        touched = [source for name in unreadable for source in _with_partners(sources[name])]
    for source in sources.values():
        for line in unpaired(source):
            logger.warning(line)
    for line in unmet_sizes(sources.values()):
        logger.warning(line)
    _encode_captions(registry, sources.values())
    _locate(registry, sources)
    return sources


def survey(
    registry: Registry, *, seed: int
) -> tuple[dict[str, PreparedBackend], dict[str, FactoryError]]:
    """Measure what is new, decide and publish the facts, as `prepare` does; encode nothing.

    Args:
        registry: The backends.
        seed: Seed of random crops.

    Returns:
        The backends of samples by name, and what is wrong with those that are not among them.
    """
    sources: dict[str, PreparedBackend] = {}
    facts, errors = scan_all(registry)
    for name, backend in registry.stored.items():
        try:
            if name in facts and not isinstance(backend, ConditioningBackend):
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


def load(registry: Registry, *, seed: int) -> dict[str, PreparedBackend]:
    """Open what `prepare` published, without listing or measuring anything.

    Raises:
        EmptyBackendError: Nothing was published for a backend.
    """
    facts = {}
    for name in registry.stored:
        found = registry.cache.facts_store(name).load()
        if found is None:
            raise EmptyBackendError(
                f"backend {name!r} has no published catalog in {registry.cache.storage.identity}; "
                "prepare_data() must have run on one rank before setup()"
            )
        facts[name] = found
    sources = _decide(registry, facts, seed)
    _locate(registry, sources)
    return sources


def end_epoch(
    registry: Registry, sources: Mapping[str, PreparedBackend], epoch: int, *, first: bool
) -> None:
    """Publish what this process has encoded in an epoch, and forget what was for it alone.

    Args:
        registry: The backends.
        sources: Those of samples, made ready.
        epoch: The epoch that has ended.
        first: Whether this process does what is to be done once for all.

    Raises:
        StorageError: The cache cannot be written to.
    """
    for source in sources.values():
        source.forget_epochs(epoch + 1, published=first)
    registry.publish()


def preload(registry: Registry) -> None:
    """Copy the stores of embeddings to memory, as far as `cache.ram_gb` reaches.

    Run by every process; those of one machine share the copies, and the work.

    Raises:
        StorageError: The storage of the cache cannot be read.
        CacheError: A shard is damaged, or the memory file system is too small.
    """
    embeds = {**registry.image_embeds, **registry.text_embeds, **registry.vision_embeds}
    for name, backend in embeds.items():
        with registry.telemetry.stage(f"copy {name} to memory") as stage:
            stage.counts["whole"] = "yes" if backend.store.preload() else "as far as there is room"


def _decide(
    registry: Registry, facts: Mapping[str, Facts], seed: int
) -> dict[str, PreparedBackend]:
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


def _source(registry: Registry, backend: SampleBackend, facts: Facts, seed: int) -> PreparedBackend:
    return PreparedBackend(
        backend,
        backend.catalog(facts, seed),
        registry.image_store(backend),
        registry.text_store(backend),
        registry.vision_store(backend),
        encode_mode=registry.encode_mode(backend),
        encode_text_mode=registry.encode_text_mode(backend),
    )


def unmet_sizes(sources: Iterable[PreparedBackend]) -> Iterator[str]:
    """Yield a line for each label of `aspect_sizes` that no sample has.

    Backends that force the same sizes are looked at together: most follow one setting.
    """
    alike: dict[str, list[PreparedBackend]] = {}
    for source in sources:
        forced = getattr(source.backend, "aspect_sizes", None)
        if forced:
            alike.setdefault(str(forced), []).append(source)
    for users in alike.values():
        shapes = {(b.width, b.height) for user in users for b in user.catalog.decisions.buckets}
        forced = users[0].backend.aspect_sizes or {}
        for label, size in forced.items():
            if tuple(size) not in shapes:
                there = ", ".join(sorted({f"{wide / high:.2f}" for wide, high in shapes}))
                names = ", ".join(user.name for user in users)
                yield (
                    f"aspect_sizes has the label {label}, which no sample of {names} has, so that "
                    f"it forces nothing; labels there are {there}"
                )


def _encode_pictures(
    registry: Registry, sources: Iterable[PreparedBackend]
) -> dict[str, dict[int, str]]:
    """Fill the stores of pictures; return what could not be read, by owner of the facts and row.

    One store after the other, so that no two encoders are loaded at once.
    """
    unreadable: dict[str, dict[int, str]] = {}
    wanted: dict[int, tuple[PictureEmbedBackend, list[PreparedBackend]]] = {}
    for source in sources:
        latents = source.latents if source.encode_mode.ahead else None
        for used in (latents, source.vision):
            if used is not None:
                wanted.setdefault(id(used), (used, []))[1].append(source)
    for store, its_sources in wanted.values():
        try:
            for source in its_sources:
                errors = _encode_into(registry, store, source)
                if errors:
                    unreadable.setdefault(_owner(source), {}).update(errors)
        finally:
            store.release()
    return unreadable


def _encode_into(
    registry: Registry, store: PictureEmbedBackend, source: PreparedBackend
) -> dict[int, str]:
    """Fill a store with a source's pictures; return what could not be read, by row."""
    # Latents are what most stores hold, and named by their source alone.
    title = source.name if store is source.latents else f"{source.name} for {store.name}"
    with registry.telemetry.stage(f"encode {title}") as stage:
        kept = registry.cache.kept(source.name)
        filled = fill_pictures(source, store, registry.engine, title, kept)
        stage.counts.update(filled.counts())
    return filled.errors


def _locate(registry: Registry, sources: Mapping[str, PreparedBackend]) -> None:
    """Look up where encoded rows lie, as far as that is not known on this machine."""
    with registry.telemetry.stage("locate rows"):
        for name, source in sources.items():
            source.locate(registry.cache.kept(name))


def _owner(source: PreparedBackend) -> str:
    """Return whose facts say what can be read: of generated pictures those of their source."""
    backend = source.backend
    if isinstance(backend, ConditioningBackend) and is_generated(backend):
        return backend.source
    return source.name


def _with_partners(source: PreparedBackend) -> list[PreparedBackend]:
    return [source, *(partner for partner, _ in source.conditioning.values())]


def _encode_captions(registry: Registry, sources: Iterable[PreparedBackend]) -> None:
    wanted = {
        name: dict.fromkeys(store.own_texts())
        for name, store in registry.text_embeds.items()
        if EncodeMode(store.encode_mode).keeps
    }
    for source in sources:
        is_partner = isinstance(source.backend, ConditioningBackend)
        if source.text is not None and not is_partner and source.encode_text_mode.ahead:
            captions = wanted.setdefault(source.text.name, dict.fromkeys(source.text.own_texts()))
            captions.update(dict.fromkeys(source.catalog.all_texts()))
    for name, captions in wanted.items():
        store = registry.text_embeds[name]
        with registry.telemetry.stage(f"encode {name}") as stage:
            try:
                filled = fill_captions(store, captions, registry.engine)
                stage.counts.update(filled.counts())
                for truncation in store.truncations():
                    stage.counts["cut"] = int(stage.counts.get("cut", 0)) + truncation.cut
                    logger.warning("%s", truncation)
            finally:
                store.encoder.release()
