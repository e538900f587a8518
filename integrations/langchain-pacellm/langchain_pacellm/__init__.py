"""PaceLLM for LangChain: a local model that reads whole documents, page by page.

    from langchain_pacellm import ChatPaceLLM, PacePDFLoader

    pages = PacePDFLoader("report.pdf").load()
    answer = ChatPaceLLM().invoke("Who are you?")

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

from langchain_pacellm.chains import WholeDocumentChain, create_whole_document_chain
from langchain_pacellm.chat_models import ChatPaceLLM
from langchain_pacellm.document_loaders import PaceBlobParser, PacePDFLoader
from langchain_pacellm.retrievers import WholeDocumentRetriever

__all__ = [
    "ChatPaceLLM",
    "PaceBlobParser",
    "PacePDFLoader",
    "WholeDocumentChain",
    "WholeDocumentRetriever",
    "create_whole_document_chain",
]
