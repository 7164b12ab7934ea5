"""What is learned of a pair is kept exactly, and nothing else is taken for it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dflash_core.contracts import DraftRanking, SamplingParams
from dflash_core.errors import InvalidSettings
from dflash_core.trees.acceptance import NUM_CLASSES, AcceptanceModel, context_class
from tests.core.tree_examples import random_model


def test_every_kind_of_sampling_has_a_class_of_its_own() -> None:
    found = {
        context_class(SamplingParams(temperature=temperature, top_k=top_k, seed=1), DraftRanking(uses_noise=uses_noise))
        for temperature in (0.3, 0.7, 1.0)
        for top_k in (0, 20)
        for uses_noise in (False, True)
    }
    greedy = {
        context_class(SamplingParams(temperature=0.0, top_k=top_k), DraftRanking(uses_noise=uses_noise))
        for top_k in (0, 20)
        for uses_noise in (False, True)
    }
    assert greedy == {0}
    assert found == set(range(1, NUM_CLASSES))


def test_what_is_saved_is_read() -> None:
    model = random_model(np.random.default_rng(0), 1.0)
    model.squares += np.random.default_rng(1).exponential(size=model.squares.shape)
    read = AcceptanceModel.from_dict(json.loads(json.dumps(model.as_dict())))
    np.testing.assert_allclose(read.parameters, model.parameters, atol=1e-5)
    np.testing.assert_allclose(read.squares, model.squares, atol=1e-3)
    assert read.as_dict() == model.as_dict()


def _changed(name: str, value: Any) -> dict[str, Any]:
    return {**AcceptanceModel().as_dict(), name: value}


def _with_first(name: str, value: Any) -> dict[str, Any]:
    saved = AcceptanceModel().as_dict()
    saved[name][0][0][0][0] = value
    return saved


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ([], "learned acceptance"),
        ({}, "form"),
        (_changed("form", 1), "form"),
        (_changed("parameters", None), "parameters"),
        (_changed("parameters", [[[[1.0]]]]), "parameters must have shape"),
        (_changed("squares", [[[[1.0], [1.0, 2.0]]]]), "squares must have shape"),
        (_changed("drafter", "other"), "drafter"),
        (_with_first("parameters", float("nan")), "parameters"),
        (_with_first("parameters", "1"), "parameters"),
        (_with_first("squares", -1.0), "squares"),
    ],
)
def test_anything_else_is_refused(saved: Any, named: str) -> None:
    with pytest.raises(InvalidSettings, match=named):
        AcceptanceModel.from_dict(saved)
