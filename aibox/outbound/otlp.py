"""Spans in OTLP's protobuf. The only file that imports `opentelemetry`: its classes, and nothing that sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aibox.errors import MissingExtraError
from aibox.outbound.span import Span, Value

MEDIA = "application/x-protobuf"
_KINDS = {"internal": 1, "server": 2, "client": 3}
_ERROR = 2
_INT = 1 << 63


def require() -> None:
    """Raises MissingExtraError where the classes are not installed."""
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401
    except ImportError:
        raise MissingExtraError("traces over OTLP", extra="traces") from None


def encode(spans: Sequence[Span], *, resource: Mapping[str, Value]) -> bytes:
    """An ExportTraceServiceRequest (OTLP 1.x) of one resource."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

    def value(of: Value) -> AnyValue:
        if isinstance(of, bool):
            return AnyValue(bool_value=of)
        if isinstance(of, int):  # what does not fit 64 bits, as a caller's seed may not, is written out
            return AnyValue(int_value=of) if abs(of) < _INT else AnyValue(string_value=str(of)[:64])
        if isinstance(of, float):
            return AnyValue(double_value=of)
        if isinstance(of, str):
            return AnyValue(string_value=clean(of))
        return AnyValue(array_value=ArrayValue(values=[value(one) for one in of]))

    def pairs(of: Mapping[str, Any]) -> list[KeyValue]:
        return [KeyValue(key=name, value=value(one)) for name, one in of.items()]

    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(pairs(resource))
    scope = group.scope_spans.add()
    scope.scope.name = "aibox"
    for span in spans:
        made = scope.spans.add(
            trace_id=bytes.fromhex(span.place.trace),
            span_id=bytes.fromhex(span.place.span),
            parent_span_id=bytes.fromhex(span.place.parent),
            name=clean(span.name),
            kind=_KINDS[span.kind],
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
            attributes=pairs({**span.attributes, **span.texts}),
        )
        if span.error:
            made.status.code = _ERROR
    data: bytes = request.SerializeToString()
    return data


def clean(text: str) -> str:
    """Without what no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def rejected(data: bytes) -> int:
    """How many spans a collector says that it did not take; 0 for an answer that is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return int(ExportTraceServiceResponse.FromString(data).partial_success.rejected_spans)
    except DecodeError:
        return 0
