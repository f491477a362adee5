"""`make("cifar10", "dataset.batch_size=4", …)`: the data module of a dataset's own config."""

import pytest
from hydra import compose, initialize_config_dir

from regbench.data.module import ImageDataModule
from regbench.paths import configs_dir
from regbench.seeding import streams


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))

    def call(name: str, *overrides: str, seed: int = 0) -> ImageDataModule:
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            config = compose(overrides=[f"+dataset={name}", *overrides])
        return ImageDataModule(config.dataset, streams(seed))

    return call
