"""The OpenAPI schema: what schemathesis makes of it is never answered with a 500."""

import re
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, Phase, given, settings

from mplus_integrations.server.wire import ChatRequest
from tests.integrations.server.conftest import Served


@pytest.mark.filterwarnings("ignore")
def test_no_request_that_fits_the_schema_is_a_500(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 25

    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True)
        def ask(case: Any) -> None:
            answer = case.call(timeout=60)
            assert answer.status_code < 500, (case.method, case.path, answer.text)

        ask()


def test_every_endpoint_says_what_it_does(served: Served) -> None:
    with served.client() as http:
        schema = http.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            assert about["description"], (method, path)
            assert path.startswith("/v1") <= ({"4XX", "5XX"} <= about["responses"].keys()), path


def test_the_schema_has_the_bounds_of_numbers() -> None:
    fields = ChatRequest.model_json_schema()["properties"]
    assert "'maximum': 2, 'minimum': 0" in str(fields["temperature"])
    assert "'minimum': 1" in str(fields["max_tokens"])
    assert not re.search(r"'(ge|gt|le|lt)':", str(ChatRequest.model_json_schema()))
