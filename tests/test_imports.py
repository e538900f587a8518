"""Who may import whom, read from the source; the table stands in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pacellm_rag"
PAGE = Path(__file__).parents[1] / "ui" / "pacellm_rag_ui"

# layer -> first-party layers it may import, third-party packages it may import
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "files": (set(), {"platformdirs"}),
    "messages": (set(), set()),
    "constraints": ({"errors", "messages"}, set()),
    "tool_format": ({"messages"}, set()),
    "protocols": ({"constraints", "errors", "messages", "tool_format"}, set()),
    "chat": ({"constraints", "errors", "messages", "protocols", "tool_format"}, set()),
    "settings": ({"errors", "files", "protocols"}, {"tomli"}),
    "documents": (
        {"errors"},
        {"pypdf", "pypdfium2", "docx", "bs4", "lxml"},
    ),
    "context": ({"errors", "protocols", "documents.types"}, set()),
    "pace": ({"errors"}, {"torch", "transformers", "safetensors"}),
    "models": (
        {"constraints", "errors", "files", "messages", "pace", "protocols", "tool_format"},
        {
            "torch", "transformers", "huggingface_hub", "safetensors", "filelock", "jinja2",
            "llguidance", "platformdirs", "numpy", "psutil",
        },
    ),
    "evaluation": (
        {
            "answer", "context", "documents", "errors", "files", "messages", "models", "pace",
            "protocols", "reader",
        },
        {"filelock", "lm_eval", "psutil", "torch", "transformers"},
    ),
    "answer": ({"protocols", "context"}, set()),
    "reader": ({"errors", "protocols", "documents.types", "context", "answer"}, set()),
    "testing": (
        {"errors", "messages", "models", "pace", "protocols", "tool_format"},
        {"torch", "transformers", "tokenizers"},
    ),
    "cli": (
        {
            "errors", "files", "protocols", "settings", "documents", "context", "pace", "models",
            "answer", "evaluation", "reader",
        },
        {"click", "rich", "transformers", "huggingface_hub"},
    ),
}  # fmt: skip


# What the page may import of the package: nothing that loads torch, or a parser, into its process.
PAGE_FIRST_PARTY = {
    "answer", "chat", "context", "documents", "errors", "messages", "models.inspection",
    "protocols", "reader",
}  # fmt: skip
# third-party package -> the page's modules that may import it
PAGE_THIRD_PARTY: dict[str, set[str]] = {
    "gradio": {
        "answer_events", "app", "layout", "page_parts", "program_events", "side_events",
    },
    "fastapi": {"app", "routes", "server"},
    "starlette": {"gate", "routes", "server", "side_events"},
    "uvicorn": {"serving"},
    "click": {"command"},
    "platformdirs": {"command"},
    "filelock": {"library", "process_folder"},
    "markdown_it": {"markup"},
    "pypdfium2": {"page_drawing"},
    "PIL": {"page_drawing"},
}  # fmt: skip


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_layer_imports_only_what_lies_below_it(path: Path) -> None:
    layer = layer_of(path)
    first_party, third_party = ALLOWED[layer]
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "pacellm_rag":
            inner = ".".join(rest)
            own = not rest or inner.split(".")[0] == layer
            allowed = own or any(inner == a or inner.startswith(f"{a}.") for a in first_party)
            assert allowed, f"{path.name} ({layer}) must not import {name}"
        elif top not in sys.stdlib_module_names:
            assert top in third_party, f"{path.name} ({layer}) must not import {name}"


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_of_the_page_imports_only_what_it_is_for(path: Path) -> None:
    for name in imports_of(path):
        top, _, inner = name.partition(".")
        if top == "pacellm_rag":
            allowed = any(inner == a or inner.startswith(f"{a}.") for a in PAGE_FIRST_PARTY)
            assert allowed or not inner, f"{path.name} must not import {name}"
        elif top == "pacellm_rag_ui":
            # it can abort its process, which is therefore one that draws a single page
            assert inner != "page_drawing", f"{path.name} must not import {name}"
        elif top not in sys.stdlib_module_names:
            allowed = path.stem in PAGE_THIRD_PARTY.get(top, set())
            assert allowed, f"{path.name} must not import {name}"


def test_the_pages_table_names_nothing_that_is_not_there() -> None:
    for package, modules in PAGE_THIRD_PARTY.items():
        for module in modules:
            found = {name.partition(".")[0] for name in imports_of(PAGE / f"{module}.py")}
            assert package in found, f"{module} does not import {package}"


@pytest.mark.parametrize(
    "module",
    [
        "pacellm_rag",
        "pacellm_rag.documents",
        "pacellm_rag.reader",
        "pacellm_rag.chat",
        "pacellm_rag.cli",
        "pacellm_rag.models.inspection",
        "pacellm_rag.evaluation.longbench",
        "pacellm_rag.evaluation.infinitebench",
        "pacellm_rag.evaluation.needle",
        "pacellm_rag.evaluation.packed",
        "pacellm_rag.evaluation.mydocs",
    ],
)  # fmt: skip
def test_light_modules_load_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'pypdf', 'numpy', 'gradio'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_loaded() -> None:
    import pacellm_rag

    for name in pacellm_rag.__all__:
        assert getattr(pacellm_rag, name) is not None
    assert set(pacellm_rag.__all__) <= set(dir(pacellm_rag))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pacellm_rag.no_such_name
