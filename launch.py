"""The one launcher: composes the config, checks it and runs the chain. `python launch.py --help` teaches the rest."""

import sys

import hydra
from omegaconf import DictConfig

from irl_exp.launch import command_line, jobs, stops


@hydra.main(config_path="conf", config_name="config", **command_line.VERSION_BASE)
def main(config: DictConfig) -> dict[str, float]:
    """One job. Any Hydra launcher may run it: the store makes sure that shared stages are computed once."""
    return jobs.run_job(config)


if __name__ == "__main__":
    stops.end_at_once()  # until jobs run, and after them
    command_line.check_command_line(sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
