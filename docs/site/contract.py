"""The contract and its comments, as `protoc` reads them, and the page of the site that shows them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "protos"
#: Numbers of fields in descriptor.proto, of which the places of comments are made.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _NESTED, _NESTED_ENUM, _ONEOF = 4, 5, 6, 2, 3, 4, 8
_TITLE = """# Protocol

Every call, message and field of `kibun.v1`, from the comments of the contract, `speech_analysis.proto`. The installed
package has it: `kibun proto` prints its path, and `protoc` or `buf` makes a client of it in any language.
Durations are `google.protobuf.Duration`, times `google.protobuf.Timestamp` (UTC); a message or an `optional` field can
be unset, other fields are then 0, false or empty.
"""


@dataclass(frozen=True)
class Element:
    """A service, call, message, field, group of alternatives, enumeration or value of one, with its comment."""

    kind: str
    name: str  # within its parent
    type: str  # of a field and of a call's request and response, as markdown; else ""
    comment: str  # "": it has none
    children: tuple[Element, ...] = ()


def contract() -> list[Element]:
    """The service, the messages and the enumerations of the contract, in the order of the file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "contract.bin")
        arguments = ["protoc", f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}", "--include_source_info"]
        code = protoc.main([*arguments, f"--descriptor_set_out={out}", "kibun/v1/speech_analysis.proto"])
        if code:
            raise ValueError(f"protoc failed with exit code {code}")
        (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return _Reader(file).elements()


def flat(elements: list[Element] | tuple[Element, ...], path: str = "") -> Iterator[tuple[str, Element]]:
    """Every element with its name in full."""
    for element in elements:
        name = f"{path}{element.name}"
        yield name, element
        yield from flat(element.children, f"{name}.")


class _Reader:
    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._places = {tuple(place.path): place for place in file.source_code_info.location}

    def elements(self) -> list[Element]:
        found = [(self._line(_SERVICE, n), self._service(n)) for n in range(len(self._file.service))]
        found += [
            (self._line(_MESSAGE, n), self._message(m, (_MESSAGE, n))) for n, m in enumerate(self._file.message_type)
        ]
        found += [(self._line(_ENUM, n), self._enum(e, (_ENUM, n))) for n, e in enumerate(self._file.enum_type)]
        return [element for _, element in sorted(found, key=lambda pair: pair[0])]

    def _service(self, number: int) -> Element:
        service, path = self._file.service[number], (_SERVICE, number)
        calls = []
        for n, call in enumerate(service.method):
            asked, answered = (
                f"{'stream of ' if streams else ''}{_link(name)}"
                for streams, name in (
                    (call.client_streaming, call.input_type),
                    (call.server_streaming, call.output_type),
                )
            )
            calls.append(Element("call", call.name, f"{asked} → {answered}", self._comment(*path, _FIELD, n)))
        return Element("service", service.name, "", self._comment(*path), tuple(calls))

    def _message(self, message: DescriptorProto, path: tuple[int, ...]) -> Element:
        enums = [self._enum(e, (*path, _NESTED_ENUM, n)) for n, e in enumerate(message.enum_type)]
        nested = [
            self._message(m, (*path, _NESTED, n)) for n, m in enumerate(message.nested_type) if not m.options.map_entry
        ]
        choices = [
            Element("oneof", oneof.name, "", self._comment(*path, _ONEOF, n))
            for n, oneof in enumerate(message.oneof_decl)
            if (*path, _ONEOF, n) in self._places  # not one that protoc made for an optional field
        ]
        fields = [
            Element("field", f.name, _type(f, message), self._comment(*path, _FIELD, n))
            for n, f in enumerate(message.field)
        ]
        children = (*enums, *nested, *choices, *fields)
        return Element("message", message.name, "", self._comment(*path), children)

    def _enum(self, enum: EnumDescriptorProto, path: tuple[int, ...]) -> Element:
        values = [Element("value", v.name, "", self._comment(*path, _FIELD, n)) for n, v in enumerate(enum.value)]
        return Element("enum", enum.name, "", self._comment(*path), tuple(values))

    def _comment(self, *path: int) -> str:
        place = self._places[path]
        return (place.leading_comments or place.trailing_comments).strip("\n")

    def _line(self, *path: int) -> int:
        return int(self._places[path].span[0])


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    entries = {f".kibun.v1.{message.name}.{m.name}": m for m in message.nested_type if m.options.map_entry}
    if entry := entries.get(field.type_name):
        key, value = (FieldDescriptorProto.Type.Name(f.type).removeprefix("TYPE_").lower() for f in entry.field)
        return f"map of {key} to {value}"
    name = _link(field.type_name) if field.type_name else kind
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(name: str) -> str:
    """A name of the contract as a link within its page; others as they are."""
    ours = name.removeprefix(".kibun.v1.")
    if ours == name:
        return name.rpartition(".")[2]
    return f"[{ours}](#{_anchor(ours)})"


def _anchor(name: str) -> str:
    return name.lower().replace(".", "-")


# ---- the page


def page() -> str:
    """The reference of the protocol, in markdown."""
    parts = [_TITLE]
    for element in contract():
        parts += _section(element, element.name)
    return "\n\n".join(parts) + "\n"


def _section(element: Element, name: str) -> Iterator[str]:
    yield f"## {name} {{ #{_anchor(name)} }}"
    yield markdown(element.comment)
    choices = [child for child in element.children if child.kind == "oneof"]
    for child in element.children:
        if child.kind in ("call", "field", "value"):
            title = f"`{child.name}`" + (f" · {child.type}" if child.type else "")
            yield title + "\n" + _indented(markdown(child.comment))
    for child in choices:
        yield f"One at a time (`{child.name}`). " + markdown(child.comment)
    for child in element.children:
        if child.kind in ("message", "enum"):
            yield from _section(child, f"{name}.{child.name}")


def _indented(text: str) -> str:
    """As the definition of the line above."""
    first, *rest = text.split("\n")
    return "\n".join([f":   {first}", *(f"    {line}" if line else "" for line in rest)])


def markdown(comment: str) -> str:
    """A comment as paragraphs and lists, with names of the contract as code."""
    blocks: list[str] = []
    for line in comment.split("\n"):
        text = line.strip()
        begins = not blocks or not text or re.match(r"(-|\d+\.) ", text)
        after_list = blocks and re.match(r"(-|\d+\.) ", blocks[-1]) and not line.startswith("  ")
        if begins or after_list:
            blocks.append(text)
        else:
            blocks[-1] += f" {text}"
    return "\n\n".join(map(as_code, filter(None, blocks)))


def as_code(text: str) -> str:
    """Marks what is a name in code (`a_b`, `A_B`, `Aa.b`, an expression for ids) as such."""
    name = r"`[^`]*`|\[A-Za.*?\}|\b\w+(?:\.\w+)*_\w+\b|\b[A-Z][a-z]\w+\.[a-z]\w+"
    return re.sub(name, lambda found: found[0] if found[0][0] == "`" else f"`{found[0]}`", text)
