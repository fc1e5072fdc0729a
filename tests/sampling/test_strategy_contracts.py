"""Every selection and weighting keeps the contract of its kind."""

import pytest

from factory.sampling.selection import Balanced, Random, Selection
from factory.sampling.strategies import AutoWeighting, UniformWeighting, Weighting
from factory.testing.sampling import SelectionContract, WeightingContract


class TestBalanced(SelectionContract):
    @pytest.fixture
    def selection(self) -> Selection:
        return Balanced()


class TestRandom(SelectionContract):
    @pytest.fixture
    def selection(self) -> Selection:
        return Random()


class TestUniformWeighting(WeightingContract):
    @pytest.fixture
    def weighting(self) -> Weighting:
        return UniformWeighting()


class TestAutoWeighting(WeightingContract):
    @pytest.fixture
    def weighting(self) -> Weighting:
        return AutoWeighting()
