"""The contract of generators of conditioning pictures: a function of pixels, settings and draws."""

import pickle

import numpy as np

from factory.conditioning.generator import Generator, check_made, drawing

# A bright square on a dark, slightly uneven ground: it has edges, and no size is square.
PICTURE = np.full((64, 96, 3), 30, dtype=np.uint8)
PICTURE[16:48, 32:64] = 220
PICTURE += np.random.default_rng(0).integers(0, 5, PICTURE.shape, dtype=np.uint8)
PICTURE.flags.writeable = False


class GeneratorContract:
    """What every generator does. Give a fixture `generator`."""

    def test_a_result_is_of_the_size_promised(self, generator: Generator) -> None:
        made = generator(PICTURE, drawing(0, "a.png"))
        assert check_made(made, PICTURE, generator) is made

    def test_a_result_does_not_depend_on_what_was_asked_before(self, generator: Generator) -> None:
        first = generator(PICTURE, drawing(0, "a.png"))
        generator(PICTURE, drawing(1, "other.png"))
        copy = pickle.loads(pickle.dumps(generator))
        for again in (generator, copy):
            assert np.array_equal(again(PICTURE, drawing(0, "a.png")), first)

    def test_only_what_draws_depends_on_seed_and_key(self, generator: Generator) -> None:
        alone = generator(PICTURE, drawing(0, "a.png"))
        for seed, key in ((0, "b.png"), (1, "a.png")):
            other = generator(PICTURE, drawing(seed, key))
            assert np.array_equal(alone, other) != generator.random

    def test_every_setting_is_part_of_the_fingerprint(self, generator: Generator) -> None:
        copy = pickle.loads(pickle.dumps(generator))
        assert copy.fingerprint == generator.fingerprint
        assert set(vars(generator)) <= set(generator.fingerprint)
