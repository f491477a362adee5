"""Puts the installed plug-ins' config folders on Hydra's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from regbench.paths import plugins


class RegBenchPlugins(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in plugins().items():
            search_path.append(provider=package, path=f"file://{folder / 'configs'}")  # Hydra decodes no %20
