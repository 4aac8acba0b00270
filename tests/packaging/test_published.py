"""Published figures name mechanisms of the zoo, and where they were read."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from attention_zoo.zoo import ATTENTION, POSITION

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tasks" / "comparison" / "published").glob("*.yaml"))
NAMES = {*ATTENTION, *POSITION}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_figures_have_sources_and_names_of_the_zoo(path: Path) -> None:
    published = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(published, dict)
    assert published["benchmark"] == path.stem and published["setting"]
    assert published["sources"]
    for source in published["sources"]:
        assert re.search(r"arXiv \d{4}\.\d{5}|github\.com/|\d{4}", source["source"])
        assert 2017 <= source["year"] <= 2030
        assert all(source[key] for key in ("table", "metric", "settings", "read_from"))
        figures, orderings = source.get("figures", {}), source.get("orderings", [])
        assert figures or orderings
        assert figures.keys() <= NAMES
        assert all(isinstance(figure, (int, float)) for figure in figures.values())
        if "percent" in source["metric"]:
            assert all(0 <= figure <= 100 for figure in figures.values())
        for ordering in orderings:
            labels = ordering.get("better", []) + ordering.get("worse", [])
            names = [label.partition(" ")[0] for label in labels]
            names += re.findall(r"[a-z]+_[a-z_0-9]+", ordering["claim"])
            assert {*names} <= NAMES | {"none"}
            assert ("better" in ordering) == ("worse" in ordering)


def test_every_benchmark_has_data_of_its_name() -> None:
    assert FILES
    for path in FILES:
        assert (ROOT / "conf" / "data" / f"{path.stem}.yaml").exists()
