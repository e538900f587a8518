"""PaceLLM for LangChain: whole documents, page by page.

    from langchain_pacellm import PacePDFLoader

    pages = PacePDFLoader("report.pdf").load()

Needs langchain-core, and imports no other framework.
"""

from pacellm_rag.errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingDependencyError(
        'langchain_pacellm needs langchain-core: pip install "pacellm-rag[langchain]"',
        name="langchain_core",
    ) from error

from langchain_pacellm.document_loaders import PaceBlobParser, PacePDFLoader

__all__ = ["PaceBlobParser", "PacePDFLoader"]
