"""Prices from a file, by the names of GPUs and models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtools.process import Failure
from vtools.records import prices


def test_prices_are_found_by_name_and_a_name_that_the_file_lacks_is_told_which_it_has(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(prices.EXAMPLE)
    found = prices.read(str(path))
    assert found.gpu_hour("a100-80g") == 1.8 and found.gpu_hour("here") == 0.9
    assert found.tokens("gpt-4.1") == (2.0, 8.0)
    with pytest.raises(Failure, match=r"prices\.json: no price for the gpu h200; it has a100-80g, here"):
        found.gpu_hour("h200")
    with pytest.raises(Failure, match=r"no price for the model gpt-5; it has gpt-4\.1"):
        found.tokens("gpt-5")
    path.write_text("{}")
    with pytest.raises(Failure, match="it has none"):
        prices.read(str(path)).gpu_hour("here")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1.80", "not prices in the form"),
        ("[]", "not prices in the form"),
        ('{"gpu": 2}', "not prices in the form"),
        ('{"model": {"gpt": {"in": 2}}}', "not prices in the form"),
        ('{"model": {"gpt": 2}}', "not prices in the form"),
        ('{"gpu": {"t4": "1"}}', 't4: "1" is not a number of dollars'),
        ('{"gpu": {"t4": true}}', "t4: true is not a number"),
        ('{"gpu": {"t4": -1}}', "t4: -1 is not a number"),
        ('{"gpu": {"t4": NaN}}', "t4: NaN is not a number"),
        ('{"model": {"gpt": {"in": 1, "out": null}}}', "gpt: null is not a number"),
        ('{"gpus": {}}', "gpus is neither gpu nor model"),
        ("{", "prices look like"),
        ("\xff", "prices look like"),
    ],
)
def test_what_is_no_list_of_prices_is_refused_with_an_example(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(Failure) as stopped:
        prices.read(str(path))
    assert says in str(stopped.value) and str(path) in str(stopped.value)
    assert json.loads(prices.EXAMPLE).keys() == {"gpu", "model"} and prices.EXAMPLE in str(stopped.value)
