"""`python -m resnetlab` is the same program as `resnetlab`."""

from resnetlab.cli.main import main

if __name__ == "__main__":
    main()
