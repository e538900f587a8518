"""What the integrations import: public names and their own framework, and nothing of each other."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2] / "integrations"
# the package's public modules: those without torch, each with the names that it offers
PUBLIC = {
    name: set(importlib.import_module(name).__all__)
    for name in (
        "pacellm_rag",
        "pacellm_rag.answer",
        "pacellm_rag.chat",
        "pacellm_rag.constraints",
        "pacellm_rag.context.citations",
        "pacellm_rag.context.lexical",
        "pacellm_rag.context.markers",
        "pacellm_rag.context.matching",
        "pacellm_rag.context.packing",
        "pacellm_rag.context.prompts",
        "pacellm_rag.documents",
        "pacellm_rag.errors",
        "pacellm_rag.messages",
        "pacellm_rag.protocols",
        "pacellm_rag.reader",
    )
}
# distribution -> its own package, third-party packages it may import
FRAMEWORKS = {
    "langchain-pacellm": ("langchain_pacellm", {"langchain_core", "pydantic", "typing_extensions"}),
    "llama-index-llms-pacellm": (
        "llama_index.llms.pacellm",
        {
            "llama_index.core", "llama_index_instrumentation", "fsspec", "pydantic", "pytest",
            "typing_extensions",
        },
    ),
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each import: the module, and the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_integration_imports_public_names_and_its_own_framework(path: Path) -> None:
    own, frameworks = FRAMEWORKS[path.relative_to(ROOT).parts[0]]
    for module, names in imports_of(path):
        if lies_in(module, "pacellm_rag"):
            assert module in PUBLIC, f"{path.name} must not import {module}"
            modules = {name for name in names if f"{module}.{name}" in PUBLIC}
            assert set(names) <= PUBLIC[module] | modules, f"{path.name}: private in {module}"
        elif module.partition(".")[0] not in sys.stdlib_module_names:
            allowed = [own, *frameworks]
            assert any(lies_in(module, package) for package in allowed), (
                f"{path.name} must not import {module}"
            )


def test_llama_indexs_own_folders_are_left_to_llama_index() -> None:
    namespace = ROOT / "llama-index-llms-pacellm" / "llama_index"
    assert not (namespace / "__init__.py").exists()
    assert not (namespace / "llms" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("langchain_pacellm", "llama_index"),
        ("llama_index.llms.pacellm", "langchain"),
    ],
)
def test_each_integration_loads_neither_the_other_nor_a_model_library(
    module: str, other: str
) -> None:
    code = (
        f"import sys, {module}\n"
        f"others = [name for name in sys.modules if name.startswith({other!r})]\n"
        "print(others, {'torch', 'transformers', 'pypdf'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] set()"


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain_pacellm", "langchain_core", "langchain"),
        ("langchain_pacellm.document_loaders", "langchain_core", "langchain"),
        ("llama_index.llms.pacellm", "llama_index.core", "llama-index"),
        ("llama_index.llms.pacellm.reader", "llama_index.core", "llama-index"),
    ],
)
def test_a_missing_framework_is_named_with_the_command_that_installs_it(
    module: str, framework: str, extra: str
) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{framework!r}] = None\n"
        "from pacellm_rag.errors import MissingDependencyError\n"
        "try:\n"
        f"    import {module}\n"
        "except MissingDependencyError as error:\n"
        "    print(error.name, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{framework} {module.partition('.')[0]}")
    assert f'pip install "pacellm-rag[{extra}]"' in done.stdout


@pytest.mark.parametrize("framework", ["langchain_core", "llama_index.core"])
def test_a_broken_framework_is_not_taken_for_a_missing_one(framework: str, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*framework.split("."))
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import no_such_module_of_the_framework\n")
    module = "langchain_pacellm" if framework == "langchain_core" else "llama_index.llms.pacellm"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ModuleNotFoundError: No module named 'no_such_module_of_the_framework'"


@pytest.mark.parametrize(
    ("extra", "others"),
    [
        ("langchain", ("llama-index", "gradio")),
        ("llama-index", ("langchain", "gradio")),
    ],
)
def test_an_extra_brings_its_own_framework_only(extra: str, others: tuple[str, ...]) -> None:
    extras = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    wanted, brought = [extra], set[str]()
    while wanted:
        for requirement in extras[wanted.pop()]:
            inner = requirement.removeprefix("pacellm-rag[").rstrip("]").split(",")
            if requirement.startswith("pacellm-rag["):
                wanted += inner
            else:
                brought.add(requirement)
    assert any(name.startswith(extra) for name in brought)
    assert not [name for name in brought if name.startswith(others)]
