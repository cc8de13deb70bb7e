"""Bicep files as trees.

Reads the subset that pycep understands: no spread, no multi-line ternary, no two-argument lambda.

pycep gives a literal text and a name alike as a string, so nothing here tells them apart.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pycep import BicepParser

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"

type Tree = dict[str, Any]
type Keys = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resource:
    """One declaration of a resource; `body` is what a loop repeats or a condition guards."""

    symbol: str
    type: str
    existing: bool
    body: Tree

    def value(self, dotted: str) -> Any:
        """The value at `properties.siteConfig.minTlsVersion` and the like; None where it is not set."""
        found: Any = self.body
        for name in dotted.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


@dataclass(frozen=True)
class BicepFile:
    """One file; raises pycep's error at the first look where it cannot be read."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> Tree:
        tree: Tree = dict(_parser().parse(text=self.text))
        return tree

    @property
    def parameters(self) -> dict[str, Tree]:
        return self._declared("parameters")

    @property
    def outputs(self) -> dict[str, Tree]:
        return self._declared("outputs")

    @property
    def modules(self) -> dict[str, Tree]:
        return self._declared("modules")

    @property
    def variables(self) -> dict[str, Tree]:
        return self._declared("variables")

    def _declared(self, kind: str) -> dict[str, Tree]:
        found: dict[str, Tree] = self.tree.get(kind, {})
        return found

    def variable(self, name: str) -> Any:
        return self.variables[name]["value"]

    @cached_property
    def resources(self) -> list[Resource]:
        declared = self._declared("resources")
        return [Resource(s, r["type"], r["existing"], body_of(r["config"])) for s, r in declared.items()]

    def of_type(self, name: str) -> list[Resource]:
        return [resource for resource in self.resources if resource.type == name and not resource.existing]

    @cached_property
    def code(self) -> str:
        """The text without comments."""
        return re.sub(r"(?<!:)//.*$", "", self.text, flags=re.MULTILINE)


@cache
def _parser() -> BicepParser:
    return BicepParser()


@cache
def read(name: str) -> BicepFile:
    """A file of `infra/`."""
    path = INFRA / name
    return BicepFile(path, path.read_text())


def all_files() -> list[BicepFile]:
    return [read(str(path.relative_to(INFRA))) for path in sorted(INFRA.rglob("*.bicep"))]


def body_of(config: Tree) -> Tree:
    """What a declaration makes, without the loop or condition around it."""
    while isinstance(config, dict) and "config" in config:
        config = config["config"]
    return config


def decorators(declaration: Tree) -> dict[str, Any]:
    return {found["type"]: found.get("argument") for found in declaration["decorators"]}


def places(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text in a tree, with the keys that lead to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, str(key).strip("'")))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, str(index)))
    elif isinstance(value, str):
        yield path, value


def mentions(text: str, name: str) -> bool:
    """Whether a text of a tree is that name, or holds it between `${` and `}`."""
    return text == name or any(re.search(rf"\b{name}\b", inner) for inner in re.findall(r"\$\{(.*?)\}", text))
