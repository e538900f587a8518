"""A page for questions about several long documents, with the cited passage in view.

`pacellm-rag-ui` starts it. Importing this loads neither Gradio nor torch; only `app`, which draws
the page, needs Gradio, and says how to install it where it is missing.
"""
