"""Other names of models: listed, described, answered with; the kernel is asked for the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI

from shell.gateway.config import parse_arguments
from tests.gateway.harness import KernelThread, hello, running_gateway
from tests.gateway.test_gateway_errors import CHAT, check_error
from tests.scripted_kernel import make_model


def test_another_name_is_the_same_model(own_kernel: KernelThread, tmp_path: Path) -> None:
    """The first model's, and a second one's by its name; a name that a model has stays the model's."""
    second = make_model(own_kernel.folder / "model", "org/second")
    own_kernel.call(lambda: own_kernel.kernel.models.append(second))
    options = ("--alias=gpt-4o", "--alias=other=org/second", "--alias=org/second", "--alias=gone=no-such")
    with running_gateway(own_kernel, tmp_path / "gateway", *options) as gateway:
        with OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
            listed = {model.id: model.to_dict()["root"] for model in client.models.list().data}
            models = {"scripted": "scripted", "org/second": "org/second"}
            assert listed == {**models, "gpt-4o": "scripted", "other": "org/second"}
            for name, model in listed.items():
                described = client.models.retrieve(name)
                assert (described.id, described.to_dict()["root"]) == (name, model)
                answer = client.chat.completions.create(model=name, messages=hello()["messages"])
                assert answer.model == name
                assert own_kernel.kernel.spawned[-1].spawn.model == model
                chunks = client.completions.create(model=name, prompt="x", stream=True)
                assert {chunk.model for chunk in chunks} == {name}
        for name in ("gone", "gpt-4"):
            check_error(gateway.post(CHAT, hello(model=name)), 404, "model_not_found", "model")
            check_error(gateway.get(f"/v1/models/{name}"), 404, "model_not_found", "model")


@pytest.mark.parametrize("given", [["=x"], ["x="], [""], ["x", "x=y"]])
def test_wrong_aliases_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the option's name, before anything starts."""
    with pytest.raises(SystemExit) as caught:
        parse_arguments([f"--alias={each}" for each in given])
    assert caught.value.code == 2
    assert "--alias: " in capsys.readouterr().err
