import pickle

import pytest

from pipeline.config import Settings, Uri, load
from pipeline.errors import EquihandError, SettingsError, one_line, warn
from pipeline.masking import holds_secret, masked, printable

WITH_SECRET = [
    ("http://me:pass-word@host:5000/x", "http://me:***@host:5000/x"),
    ("http://me:p@ss/word@host", "http://me:***@host"),
    ("https://hf_abcdef@host/x", "https://***@host/x"),
    ("s3://KEY:SECRET@bucket/frames", "s3://KEY:***@bucket/frames"),
    ("s3://KEY@bucket/frames", "s3://***@bucket/frames"),
    ("postgresql://me:pass@host/db", "postgresql://me:***@host/db"),
    ("postgresql://host/db?user=me&password=pass", "postgresql://host/db?user=me&password=***"),
    ("s3://b/k?X-Amz-Expires=9&X-Amz-Signature=0a1b&z=1", "s3://b/k?X-Amz-Expires=9&X-Amz-Signature=***&z=1"),
    ("https://b/k?AWSAccessKeyId=AK&Signature=a%2Fb", "https://b/k?AWSAccessKeyId=***&Signature=***"),
    ("s3://b?access_key=AK&secret_key=SK", "s3://b?access_key=***&secret_key=***"),
    ("https://acc.blob/x?sv=1&sig=a%3D", "https://acc.blob/x?sv=1&sig=***"),
]
WITHOUT = [
    "http://127.0.0.1:5000/x@y",
    "postgresql://me@host/db",
    "s3://bucket/a:b@c.mp4",
    "s3://bucket/a?b=c",
    "sqlite:////data/mlflow.db",
    "file:///x:y@z",
    "/data/me:you@here",
    "copied a:b to s3://x/y, write to me@example.org",
]


@pytest.mark.parametrize(("text", "shown"), WITH_SECRET)
def test_secrets_are_masked(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown
    assert holds_secret(text)
    assert masked(f"'{text}': no such file, see http://host/") == f"'{shown}': no such file, see http://host/"
    for said in (str(EquihandError(f"{text}: gone")), one_line(ValueError(text))):
        assert said.startswith(shown)


@pytest.mark.parametrize("text", WITHOUT)
def test_the_rest_stays_as_it_is(text):
    assert masked(text) == text
    assert not holds_secret(text)


def test_secrets_of_the_environment_are_masked_wherever_they_come_from(monkeypatch, caplog):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("HF_TOKEN", "local")  # too short to be told from a word
    assert one_line(ValueError("signed with wJalrXUtnFEMI/K7MDENG, a local key")) == "signed with ***, a local key"
    warn("wJalrXUtnFEMI/K7MDENG is wrong")
    assert caplog.messages == ["*** is wrong"]


def test_names_steer_no_terminal():
    name = "a\x1b[2J\r\n\u202egpj.exe\x9b31m ödd 手.jpg"
    assert printable(name) == "a\\x1b[2J\\r\\n\\u202egpj.exe\\x9b31m ödd 手.jpg"
    error = EquihandError(f"{name}: unreadable", "second line")
    assert str(error).splitlines() == [f"{printable(name)}: unreadable", "second line"]
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


class Job(Settings):
    where: Uri
    more: list[Uri] = []


@pytest.mark.parametrize(("uri", "shown"), WITH_SECRET)
def test_a_setting_holds_no_secret(uri, shown, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(f"where: x\nmore: ['{uri}']\n")
    for arguments in ([f"--where={uri}"], ["--config", str(config)]):
        with pytest.raises(SettingsError, match="give it in the environment") as raised:
            load(Job, arguments)
        assert shown in str(raised.value)
        assert uri not in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_other_uris_are_settings(uri):
    assert load(Job, [f"--where={uri}"]).where == uri
