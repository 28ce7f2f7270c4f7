"""The launcher of a checkout; installed it is `irl-exp`. `python launch.py --help` teaches the rest."""

from irl_exp.launch.main import main

if __name__ == "__main__":
    main()
