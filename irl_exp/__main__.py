"""`python -m irl_exp`, and the console script `irl-exp`."""

from irl_exp.launch.main import main

if __name__ == "__main__":
    main()
