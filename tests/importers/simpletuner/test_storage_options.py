"""Secrets are named by their variable; their values appear nowhere."""

import io
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from factory.importers.simpletuner.files import Import
from factory.importers.simpletuner.output import show
from factory.importers.simpletuner.problem import ImportRefusedError
from tests.importers.simpletuner.building import converted, entry
from tests.support.examples import examples

KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def bucket(**keys: Any) -> dict[str, Any]:
    shared = {"aws_bucket_name": "b", "aws_endpoint_url": "https://e"}
    secrets = dict.fromkeys(KEYS, "plain")
    return entry(type="aws", instance_data_dir=None, **{**shared, **secrets, **keys})


def everything_said(*entries: dict[str, Any]) -> str:
    """Return all that an import writes and prints, or what its refusal says."""
    try:
        made = Import("old", "multi.json", converted(*entries))
    except ImportRefusedError as error:
        return str(error)
    shown = io.StringIO()
    show(made, Console(file=shown, width=10_000), every=True)
    return "\n".join([*made.files("myconf").values(), *made.exports, shown.getvalue()])


SECRETS = st.text(alphabet="ABCDEFGHJKLMNPQRSTUVWXYZ%/:@'\"\n{}$", min_size=4).map(
    "s3cr3t{}".format
)


@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
@given(SECRETS, st.sampled_from([*KEYS, "aws_acces_key_id", "password", "hf_token"]), st.booleans())
def test_a_secret_appears_nowhere(secret: str, key: str, sound: bool) -> None:
    said = everything_said(bucket(**{key: secret}, repeats=1 if sound else -1))
    assert "s3cr3t" not in said


@pytest.mark.parametrize("user", ["s3cr3t", "u:s3cr3t", "u:s3/cr3t", "u:a@s3cr3t"])
def test_credentials_in_a_url_are_cut_out(user: str) -> None:
    said = everything_said(bucket(aws_endpoint_url=f"https://{user}@host:9000/x"))
    assert "cr3t" not in said
    assert "endpoint_url: 'https://host:9000/x'" in said


def test_variables_are_named_and_their_sources_kept() -> None:
    given = bucket(
        aws_access_key_id="{env:MY_KEY}", aws_secret_access_key="{env:AWS_SECRET_ACCESS_KEY}"
    )
    made = Import("old", "multi.json", converted(given))
    assert made.exports == [
        'export AWS_ACCESS_KEY_ID="$MY_KEY"',
        "export AWS_SESSION_TOKEN=...   # aws_session_token of d",
    ]


def test_two_sets_of_credentials_are_told() -> None:
    other = bucket(id="e", aws_access_key_id="another")
    made = Import("old", "multi.json", converted(bucket(), other))
    (remark,) = [text for text in made.remarks if "one for the whole run" in text]
    assert remark.startswith("AWS_ACCESS_KEY_ID")
    assert "d, e" in remark
