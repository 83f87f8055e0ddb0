"""What each module of ours imports, read from its source: inside functions and under TYPE_CHECKING too."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "gaelp_tasks": ROOT / "gaelp_tasks",
    "gaelp_workers": ROOT / "workers" / "gaelp_workers",
    "gaelp_beat": ROOT / "beat" / "gaelp_beat",
}


@cache
def our_modules() -> dict[str, Path]:
    """Every module of ours with its file."""
    return {
        ".".join((package, *path.relative_to(home).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, home in PACKAGES.items()
        for path in sorted(home.rglob("*.py"))
    }


@cache
def imports() -> dict[str, frozenset[str]]:
    """Every module of ours with what it imports."""
    return {
        module: frozenset(
            read_imports(path.read_text(), module=module, is_package=path.name == "__init__.py")
        )
        for module, path in our_modules().items()
    }


def read_imports(source: str, *, module: str, is_package: bool = False) -> Iterator[str]:
    """The modules that a source imports; `from package import name` is that module where we have it."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in our_modules() else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a module is one of these, or lies below one of them."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)
