"""`python -m pacellm_rag` is the command `pacellm-rag`."""

from pacellm_rag.cli import main

if __name__ == "__main__":
    main()
