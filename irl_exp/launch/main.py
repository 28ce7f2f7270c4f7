"""The program: `python launch.py`, `irl-exp` and `python -m irl_exp` compose the config, check it and run the chain."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from irl_exp.config import CONF
from irl_exp.launch import command_line, ending, jobs, stops
from irl_exp.launch.writing import WriteError


@hydra.main(config_path=str(CONF), config_name="config", **command_line.VERSION_BASE)
def job(config: DictConfig) -> dict[str, float] | float:
    """One job. Any Hydra launcher may run it: the store makes sure that shared stages are computed once."""
    return jobs.run_job(config)


def main() -> None:
    """What the command line asks for: help, or a launch to its end, under whatever launcher and sweeper of Hydra."""
    stops.end_at_once()  # until jobs run, and after them
    command_line.answer_help(sys.argv[1:])
    command_line.check_command_line(sys.argv[1:])
    try:
        with ending.of_any_launcher():
            job()
    except WriteError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
