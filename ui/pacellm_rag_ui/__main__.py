"""`python -m pacellm_rag_ui` is `pacellm-rag-ui`."""

from pacellm_rag_ui.command import main

if __name__ == "__main__":
    main()
