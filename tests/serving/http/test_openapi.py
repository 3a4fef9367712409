"""The server against its own OpenAPI page, by schemathesis: each option works, and nothing is
answered that the page does not know."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.http.middleware import INFERENCE_PATH
from serving.http.options import OPTIONS
from tests.support.band_model import bands, encode, serve_bands

PHOTO = encode(bands(20, 30))
CONFORMS = [status_code_conformance, content_type_conformance, response_schema_conformance]
SEGMENT = "/v2/models/{model}/segment"
# What an option needs beside it to have an effect; alone it is refused by name.
COMPANIONS: dict[str, dict[str, object]] = {
    "confidence": {"format": ["stats"]},
    "image": {"format": ["overlay"]},
    "quality": {"format": ["overlay"], "image": "jpeg"},
    "opacity": {"format": ["overlay"]},
    "legend": {"format": ["overlay"]},
    "tolerance": {"format": ["polygons"]},
    "min_area": {"format": ["polygons"]},
}


def bounded(examples: int):
    """The same examples every time, few of them."""

    def decorate(test):
        limits = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(20_261_121)(limits(test))

    return decorate


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_bands(tmp_path_factory.mktemp("repository")) as served:
        yield f"http://{served.http}"


@pytest.fixture(scope="module")
def page(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def send(case: Case) -> httpx.Response:
    """The answer, which must be one that the page documents for that operation."""
    answer = case.call()
    case.validate_response(answer, checks=CONFORMS)
    # Documented, for an engine that fails; this one does not.
    assert answer.status_code != 500, answer.text
    return answer


def name_things(case: Case, data: st.DataObject) -> None:
    """Often the model that is there, else what was generated."""
    if "model" in (case.path_parameters or {}) and data.draw(st.integers(0, 3)):
        case.path_parameters["model"] = "bands"
        if "version" in case.path_parameters:
            case.path_parameters["version"] = "1"


OPERATIONS = [
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2"),
    ("get", "/metrics"),
    *[
        ("get", f"/v2/models/{{model}}{version}{end}")
        for version in ("", "/versions/{version}")
        for end in ("", "/stats", "/config", "/ready", "/classes")
    ],
    ("get", "/v2/models/stats"),
    *[
        ("post", f"/v2/models/{{model}}{version}{end}")
        for version in ("", "/versions/{version}")
        for end in ("/segment", "/infer")
    ],
    ("post", "/v2/repository/index"),
    ("post", "/v2/repository/models/{model}/load"),
    ("post", "/v2/repository/models/{model}/unload"),
    *[
        (method, f"/v2/{kind}sharedmemory{region}")
        for kind in ("system", "cuda")
        for method, region in (
            ("get", "/status"),
            ("get", "/region/{region}/status"),
            ("post", "/region/{region}/register"),
            ("post", "/region/{region}/unregister"),
            ("post", "/unregister"),
        )
    ],
]


def test_every_operation_of_the_page_is_listed_here(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {(m, path) for path, methods in paths.items() for m in methods} == set(OPERATIONS)


def test_requests_that_are_refused_by_their_head_are_those_of_the_routes_that_infer() -> None:
    matched = {path for _, path in OPERATIONS if INFERENCE_PATH.fullmatch(path)}
    assert matched == {path for _, path in OPERATIONS if path.endswith(("/segment", "/infer"))}


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS],
        # Where there are options or a body to get wrong.
        *[
            (method, path, GenerationMode.NEGATIVE)
            for method, path in OPERATIONS
            if path.endswith(("/segment", "/infer", "/index", "/load", "/unload", "/register"))
            and "cuda" not in path
        ],
    ],
)
def test_answers_are_what_the_page_says(
    page: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = page[path][method]
    answered = 0

    @bounded(8)
    @given(case=operation.as_strategy(mode), data=st.data())
    def ask(case: Case, data: st.DataObject) -> None:
        nonlocal answered
        name_things(case, data)
        send(case)
        answered += 1

    ask()
    assert answered


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_segment_has_an_effect(page: schemathesis.BaseSchema, option: str) -> None:
    """With values that the page allows for it (or gives as example), on a real photo."""
    operation = page[SEGMENT]["post"]
    documented = {parameter.name: parameter for parameter in operation.query}
    assert set(documented) == set(OPTIONS)
    examples = documented[option].definition["schema"].get("examples")
    seen = set()

    @bounded(25)
    @given(case=operation.as_strategy(), data=st.data())
    def ask(case: Case, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(examples)) if examples else (case.query or {}).get(option)
        if value is None:
            return
        case.path_parameters = {"model": "bands"}
        case.query = {**COMPANIONS.get(option, {}), option: value}
        case.headers, case.body, case.media_type = {}, PHOTO, "image/png"
        answer = send(case)
        # "null" is how it writes a value that is optional in the page.
        if "null" not in str(answer.request.url):
            assert answer.status_code == 200, answer.text
            seen.add(str(value))

    ask()
    assert seen


def test_options_in_any_mixture(page: schemathesis.BaseSchema) -> None:
    """On a real photo: answered, or refused as documented."""
    codes = set()

    @bounded(120)
    @given(case=page[SEGMENT]["post"].as_strategy())
    def ask(case: Case) -> None:
        case.path_parameters = {"model": "bands"}
        case.body, case.media_type = PHOTO, "image/png"
        codes.add(send(case).status_code)

    ask()
    assert 400 in codes
    assert codes <= {200, 400, 413, 504}
