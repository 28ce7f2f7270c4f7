"""What a wheel has more than the package: conf/, which lies beside it in a checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConfInPackage(BuildHookInterface[Any]):
    """Puts conf/ into the package; an editable install reads it where it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        conf = Path(self.root) / "conf"
        for path in conf.rglob("*.yaml") if version == "standard" else ():
            if path.parent != conf / "local":  # of this machine, not in git
                build_data["force_include"][str(path)] = f"irl_exp/{path.relative_to(self.root).as_posix()}"
