"""The statistics room, `python -m irl_exp.analysis`: it reads what runs wrote. Nobody imports it."""
