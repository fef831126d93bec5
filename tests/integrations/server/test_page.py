"""The page as files: static, strict, without a key, and with nothing of elsewhere in it."""

import re
from importlib.resources import files

import pytest

from mplus_integrations.server.page import page_files
from tests.integrations.server.conftest import Served, Serving

TEXTS = {name: file.data.decode() for name, file in page_files().items()}


def test_the_page_needs_no_key_and_its_api_does(serving: Serving) -> None:
    with serving(require_key=True) as served, served.client() as http:
        page = http.get("/")
        assert page.status_code == 200 and page.text == TEXTS["index.html"]
        for name in TEXTS:
            assert http.get(f"/page/{name}").content == TEXTS[name].encode()
        assert http.get("/page/none.js").status_code == http.get("/page/..%2Fapp.py").status_code == 404
        assert http.get("/v1/access").status_code == 401


def test_headers_let_a_browser_run_these_files_alone(served: Served) -> None:
    with served.client() as http:
        for path in ("/", "/page/app.js", "/page/style.css", "/page/icon.svg"):
            headers = http.get(path).headers
            policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
            assert policy["require-trusted-types-for"] == "'script'" and "unsafe" not in str(policy)
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        again = http.get("/", headers={"If-None-Match": http.get("/").headers["etag"]})
        assert again.status_code == 304 and not again.content


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = TEXTS["index.html"]
    assert re.findall(r"<script[^>]*>[^<]*</script>", html) == ['<script type="module" src="/page/app.js"></script>']
    assert not re.search(r"<style|\sstyle=|\son[a-z]+\s*=", html)
    for name, text in TEXTS.items():
        addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|localStorage|cookie", text
        )
    imported = {found for text in TEXTS.values() for found in re.findall(r'from "\./([^"]+)"', text)}
    assert imported <= TEXTS.keys()


def test_the_files_are_data_of_the_package() -> None:
    folder = files("mplus_integrations.server").joinpath("page")
    assert {path.name for path in folder.iterdir()} == TEXTS.keys()


def test_the_page_can_be_left_out(serving: Serving) -> None:
    with serving(page=False) as served, served.client() as http:
        assert http.get("/").status_code == http.get("/page/app.js").status_code == 404


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".html")])
def test_every_field_has_a_label_and_every_id_is_there_once(name: str) -> None:
    html = TEXTS[name]
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    fields = re.findall(r'<(?:input|textarea|select)[^>]*\sid="([^"]+)"', html)
    assert fields and {f'for="{field}"' for field in fields} <= set(re.findall(r'for="[^"]+"', html))
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', html)
    asked_for = {found for text in TEXTS.values() for found in re.findall(r'\$\("([a-z-]+)"\)', text)}
    assert {*named, *asked_for} <= set(ids)
