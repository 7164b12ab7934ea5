"""API keys and the cluster's secret: where they come from, who gets in, and that nobody sees them."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from cluster.transports.authentication import DataPlaneSecurity
from deployments.api_keys import ApiKeySource, KeyRing, parse_keys
from deployments.border_settings import LimitSettings, SecuritySettings
from deployments.builder import bind, warnings_of
from deployments.generation import GenerationService
from deployments.http_api import build_http_app
from deployments.security import API_KEYS, CLUSTER_SECRET, api_key_source, check_security
from deployments.settings import SettingsError, parse_settings
from dflash_core.errors import Unauthenticated
from tests.deployments.scripted import TOKENIZER, ScriptedRouters

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
TEXT = f"# who may\nalice: {ALICE}\n\nbob:{BOB}\n"


def _ring(text: str = TEXT) -> KeyRing:
    return KeyRing(ApiKeySource(text=SecretStr(text)))


def test_each_key_has_its_name() -> None:
    ring = _ring()
    assert ring.authenticate(f"Bearer {ALICE}") == "alice"
    assert [ring.authenticate(f"bearer {BOB}") for _ in range(2)] == ["bob", "bob"]
    assert dict(ring.num_requests) == {"alice": 1, "bob": 2}


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Basic {ALICE}", f"Bearer {ALICE}x", "Bearer é\udcff"])
def test_whoever_has_no_key_is_refused(header: str | None) -> None:
    ring = _ring()
    with pytest.raises(Unauthenticated) as caught:
        ring.authenticate(header)
    assert ALICE not in caught.value.message
    assert ring.num_refused == 1


def test_without_keys_everybody_may() -> None:
    ring = KeyRing(ApiKeySource())
    assert ring.is_open
    assert ring.authenticate(None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no key"]),
        ("# nothing\n", ["no key"]),
        (f"alice {ALICE}", ["line 1", "NAME: KEY"]),
        ("alice: short", ["line 1", "16"]),
        (f"\nalice: {ALICE} x", ["line 2"]),
        (f"alice: {ALICE}\nalice: {BOB}", ["line 2", "'alice'"]),
        (f"alice: {ALICE}\nbob: {ALICE}", ["line 2", "'bob'"]),
    ],
)
def test_a_wrong_file_is_refused_without_a_word_of_what_is_in_it(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_keys(text, "keys.txt")
    assert all(word in str(caught.value) for word in ["keys.txt", *words])
    assert ALICE not in str(caught.value)
    assert "short" not in str(caught.value).removeprefix("keys.txt")


def test_a_file_may_change_and_a_wrong_one_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice: {ALICE}\n")
    ring = KeyRing(ApiKeySource(path))
    assert ring.authenticate(f"Bearer {ALICE}") == "alice"
    path.write_text(f"bob: {BOB}  \n")
    assert ring.authenticate(f"Bearer {BOB}") == "bob"
    with pytest.raises(Unauthenticated):
        ring.authenticate(f"Bearer {ALICE}")
    ray_log = logging.getLogger("ray.serve")
    ray_log.addHandler(caplog.handler)
    try:
        path.write_text("nonsense")
        assert [ring.authenticate(f"Bearer {BOB}") for _ in range(3)] == ["bob"] * 3
        path.unlink()
        assert [ring.authenticate(f"Bearer {BOB}") for _ in range(3)] == ["bob"] * 3
    finally:
        ray_log.removeHandler(caplog.handler)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    assert BOB not in caplog.text
    with pytest.raises(SettingsError, match="No such file"):
        KeyRing(ApiKeySource(path))


async def test_http_wants_a_key_but_for_health() -> None:
    service = GenerationService(ScriptedRouters(), TOKENIZER, "tiny", LimitSettings(max_body_mib=0.001))
    transport = httpx.ASGITransport(build_http_app(service, None, _ring()))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert (await client.get("/healthz")).status_code == 200
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", "/v1/completions")):
            refused = await client.request(method, path, headers={"authorization": "Bearer wrong"})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
        key = {"authorization": f"Bearer {ALICE}"}
        assert (await client.get("/v1/models", headers=key)).status_code == 200
        assert (await client.post("/v1/completions", json={"prompt": "x"}, headers=key)).status_code == 200
        schema = (await client.get("/openapi.json")).json()
        assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"

        async def pieces() -> object:
            for _ in range(20):
                yield b" " * 100

        for body in (b" " * 2000, pieces()):  # announced, and not
            refused = await client.post("/v1/completions", content=body, headers=key)  # type: ignore[arg-type]
            assert refused.status_code == 413
            assert "1048" in refused.json()["error"]["message"]


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(TEXT)
    assert api_key_source(SecuritySettings()) == ApiKeySource()
    assert api_key_source(SecuritySettings(api_key_file=path)) == ApiKeySource(path)
    monkeypatch.setenv(API_KEYS, f"alice:{ALICE},bob:{BOB}")
    assert KeyRing(api_key_source(SecuritySettings())).authenticate(f"Bearer {BOB}") == "bob"
    with pytest.raises(SettingsError, match="one of the two"):
        api_key_source(SecuritySettings(api_key_file=path))
    monkeypatch.setenv(API_KEYS, "alice")
    with pytest.raises(SettingsError, match="line 1"):
        check_security(SecuritySettings())


@pytest.mark.parametrize("text", ["short", "with a space 0123456789", "ümlaut0123456789abcdef"])
def test_a_weak_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(CLUSTER_SECRET, text)
    with pytest.raises(SettingsError) as caught:
        check_security(SecuritySettings())
    assert text not in str(caught.value)
    path = tmp_path / "secret"
    path.write_text(text)
    with pytest.raises(SettingsError, match="one of them"):
        check_security(SecuritySettings(cluster_secret_file=path))


@pytest.mark.parametrize("name", ["api_key_file", "tls_ca_file"])
def test_files_that_are_not_here_matter_where_all_replicas_are(tmp_path: Path, name: str) -> None:
    file = tmp_path / "there"
    file.write_text(TEXT)
    files = {"api_key_file": file, "tls_cert_file": file, "tls_key_file": file, "tls_ca_file": file}
    check_security(SecuritySettings(**files), must_be_here=True)
    elsewhere = SecuritySettings(**files | {name: tmp_path / "elsewhere"})
    check_security(elsewhere)
    with pytest.raises(SettingsError, match=f"security.{name}: there is no file .*elsewhere"):
        check_security(elsewhere, must_be_here=True)


def test_some_of_the_tls_files_are_not_enough() -> None:
    with pytest.raises(SettingsError, match="missing: tls_key_file, tls_ca_file"):
        parse_settings({"security.tls_cert_file": "/tls/cert.pem"})
    with pytest.raises(SettingsError, match="tls_server_name"):
        parse_settings({"security.tls_server_name": "replicas"})


def test_an_application_s_arguments_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    security = DataPlaneSecurity(SecretStr("the secret of this cluster"))
    keys = ApiKeySource(text=SecretStr(TEXT))
    application = bind(parse_settings({}), security, keys)
    pending, shown = [application], []
    while pending:
        node = pending.pop()
        deployment = node._bound_deployment
        arguments = [*deployment.init_args, *deployment.init_kwargs.values()]
        pending += [argument for argument in arguments if type(argument) is type(application)]
        shown += [repr(argument) for argument in arguments] + [repr(deployment), repr(node)]
    assert any("SecretStr('**********')" in text for text in shown)
    assert not any("the secret of" in text or ALICE in text for text in shown)
    assert pickle.loads(pickle.dumps(security)) == security


def test_the_warning_of_open_ports_ends_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings({})
    assert any("API key" in warning for warning in warnings_of(settings))
    monkeypatch.setenv(API_KEYS, f"alice:{ALICE}")
    assert not any("API key" in warning for warning in warnings_of(settings))
    assert os.environ[API_KEYS] not in json.dumps(warnings_of(settings))
