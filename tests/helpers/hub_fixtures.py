"""The local Hub server as a fixture."""

import pytest
import transformers.utils.hub
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session

from tests.helpers.hub_server import StandIn


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in place of the Hub, for all clients of this process."""
    server = StandIn()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # transformers has its own client; older versions use the one of huggingface_hub
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield server
    close_session()
    server.close()
