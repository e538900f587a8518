"""PaceLLM for LlamaIndex: whole documents, page by page.

    from llama_index.core import SummaryIndex
    from llama_index.llms.pacellm import PaceReader, page_nodes

    index = SummaryIndex(nodes=page_nodes(PaceReader().load_data("report.pdf")))

Needs llama-index-core, and imports no other framework. The folders above this one must have no
`__init__.py`: they belong to llama-index-core's namespace.
"""

from pacellm_rag.errors import MissingDependencyError

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise MissingDependencyError(
        'llama_index.llms.pacellm needs llama-index-core: pip install "pacellm-rag[llama-index]"',
        name="llama_index.core",
    ) from error

from llama_index.llms.pacellm.base import PaceLLM
from llama_index.llms.pacellm.chat_engine import WholeDocumentChatEngine
from llama_index.llms.pacellm.chat_response import DocumentChatResponse
from llama_index.llms.pacellm.query_engine import WholeDocumentQueryEngine
from llama_index.llms.pacellm.reader import PaceReader, page_nodes

__all__ = [
    "DocumentChatResponse",
    "PaceLLM",
    "PaceReader",
    "WholeDocumentChatEngine",
    "WholeDocumentQueryEngine",
    "page_nodes",
]
