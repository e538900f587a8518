"""Who may import whom, read from the source; the table stands in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pacellm_rag"

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
    "evaluation": (set(), set()),
    "answer": ({"protocols", "context"}, set()),
    "reader": ({"errors", "protocols", "documents.types", "context", "answer"}, set()),
    "testing": (
        {"errors", "messages", "models", "pace", "protocols", "tool_format"},
        {"torch", "transformers", "tokenizers"},
    ),
    "cli": (
        {
            "errors", "files", "protocols", "settings", "documents", "context", "pace", "models",
            "answer", "reader",
        },
        {"click", "rich", "transformers", "huggingface_hub"},
    ),
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


@pytest.mark.parametrize(
    "module",
    [
        "pacellm_rag",
        "pacellm_rag.documents",
        "pacellm_rag.reader",
        "pacellm_rag.chat",
        "pacellm_rag.cli",
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
