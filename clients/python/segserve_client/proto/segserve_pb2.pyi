from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Size(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIZE_ORIGINAL: _ClassVar[Size]
    SIZE_MODEL: _ClassVar[Size]
SIZE_ORIGINAL: Size
SIZE_MODEL: Size

class SegmentRequest(_message.Message):
    __slots__ = ("model", "version", "image", "format", "size", "smooth", "confidence", "classes", "tta", "image_format", "quality", "opacity", "legend", "tolerance", "min_area")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SMOOTH_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TTA_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    OPACITY_FIELD_NUMBER: _ClassVar[int]
    LEGEND_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    MIN_AREA_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    image: bytes
    format: str
    size: Size
    smooth: bool
    confidence: bool
    classes: _containers.RepeatedScalarFieldContainer[str]
    tta: _containers.RepeatedScalarFieldContainer[str]
    image_format: str
    quality: int
    opacity: float
    legend: bool
    tolerance: float
    min_area: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., image: _Optional[bytes] = ..., format: _Optional[str] = ..., size: _Optional[_Union[Size, str]] = ..., smooth: bool = ..., confidence: bool = ..., classes: _Optional[_Iterable[str]] = ..., tta: _Optional[_Iterable[str]] = ..., image_format: _Optional[str] = ..., quality: _Optional[int] = ..., opacity: _Optional[float] = ..., legend: bool = ..., tolerance: _Optional[float] = ..., min_area: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "media_type", "body")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    name: str
    media_type: str
    body: bytes
    def __init__(self, name: _Optional[str] = ..., media_type: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("body", "media_type", "model", "version", "image_height", "image_width", "mask_height", "mask_width", "stage_seconds", "parts")
    class StageSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BODY_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MASK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MASK_WIDTH_FIELD_NUMBER: _ClassVar[int]
    STAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    media_type: str
    model: str
    version: int
    image_height: int
    image_width: int
    mask_height: int
    mask_width: int
    stage_seconds: _containers.ScalarMap[str, float]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, body: _Optional[bytes] = ..., media_type: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., image_height: _Optional[int] = ..., image_width: _Optional[int] = ..., mask_height: _Optional[int] = ..., mask_width: _Optional[int] = ..., stage_seconds: _Optional[_Mapping[str, float]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class SegmentStreamResponse(_message.Message):
    __slots__ = ("index", "response", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    response: SegmentResponse
    error: FrameError
    def __init__(self, index: _Optional[int] = ..., response: _Optional[_Union[SegmentResponse, _Mapping]] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Class(_message.Message):
    __slots__ = ("id", "name", "color")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    color: int
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., color: _Optional[int] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model", "version", "classes", "ignore_label", "height", "width", "has_logits", "formats")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IGNORE_LABEL_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HAS_LOGITS_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    classes: _containers.RepeatedCompositeFieldContainer[Class]
    ignore_label: int
    height: int
    width: int
    has_logits: bool
    formats: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[Class, _Mapping]]] = ..., ignore_label: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., has_logits: bool = ..., formats: _Optional[_Iterable[str]] = ...) -> None: ...
